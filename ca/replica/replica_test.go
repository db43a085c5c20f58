package replica_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/durable/faultfs"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/replica"
)

const (
	dir      = "journal"
	memo     = "ledger/seen.json"
	lifetime = 72 * time.Hour
)

// bench is a replica with what stands behind it.
type bench struct {
	disk      *faultfs.Disk
	store     journal.Store
	authority *ca.Authority
	replica   *replica.Replica
	rootKey   *ecdsa.PrivateKey

	mu      sync.Mutex // guards all below
	keyAway error
	opened  int
}

// newBench founds a root on disk, and makes a replica that follows it. change
// may alter its configuration.
func newBench(t *testing.T, disk *faultfs.Disk, change func(*replica.Config)) *bench {
	t.Helper()
	b := &bench{disk: disk, rootKey: catest.Key(t)}
	if err := disk.MkdirAll("ledger"); err != nil {
		t.Fatal(err)
	}
	store, err := journal.OpenFile(disk, dir)
	if err != nil {
		t.Fatal(err)
	}
	b.store = store
	td := attesttest.Domain(t, "cluster.local")
	cert := catest.Certify(t, ca.Root, td, b.rootKey, ca.Parent{}, catest.RootLifetime, time.Now())
	root := journal.Root{ID: hex.EncodeToString(cert.SubjectKeyId), Certificate: cert.Raw, KeyURI: "softkms:path=root.pem", Phase: journal.Active, Since: time.Now()}
	rec, err := journal.NewRecord(journal.State{}, journal.Body{Time: time.Now(), TrustDomain: td.String(), By: "test", Founded: &root}, journal.Signer{Root: root.ID, Key: b.rootKey})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Append(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	b.start(t, change)
	return b
}

// start makes the authority and the replica of a new process.
func (b *bench) start(t *testing.T, change func(*replica.Config)) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	var err error
	b.authority, err = ca.New(ca.Config{Leaf: catest.LeafProfile(t), Ledger: &catest.Ledger{}, Registerer: prometheus.NewRegistry(), Log: log, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	cfg := replica.Config{
		ID: "r1", TrustDomain: attesttest.Domain(t, "cluster.local"), Store: b.store, OpenKey: b.open, Authority: b.authority,
		Lifetime: lifetime, MemoFS: b.disk, MemoFile: memo, Registerer: prometheus.NewRegistry(), Log: log, Now: time.Now,
	}
	if change != nil {
		change(&cfg)
	}
	if b.replica, err = replica.New(cfg); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) open(_ context.Context, _ string, cert *x509.Certificate) (crypto.Signer, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opened++
	if b.keyAway != nil {
		return nil, b.keyAway
	}
	if !b.rootKey.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("another root's key was asked for")
	}
	return b.rootKey, nil
}

func (b *bench) setKey(away error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keyAway = away
}

// known tells whether the journal of a disk names the issuing CA.
func known(t *testing.T, when string, disk *faultfs.Disk, authority string) journal.State {
	t.Helper()
	s, err := journal.ReadFile(disk, dir)
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	if authority != "" && !slices.ContainsFunc(s.Issuing, func(i journal.IssuingCA) bool { return i.ID == authority }) {
		t.Fatalf("%s: %s signs, and is not in the journal", when, authority)
	}
	return s
}

func TestRenew(t *testing.T) {
	b := newBench(t, faultfs.New(), nil)
	if b.replica.Ready() == nil || b.authority.Current() != nil {
		t.Error("it is ready before it has an issuing CA")
	}
	var last string
	for range 3 {
		issuer, err := b.replica.Renew(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		snap := b.authority.Current()
		if !snap.Issuer().Equal(issuer) || snap.AuthorityID() == last || b.replica.Ready() != nil {
			t.Errorf("authority %s is in force, ready: %v", snap.AuthorityID(), b.replica.Ready())
		}
		last = snap.AuthorityID()
		known(t, "renewed", b.disk, last)
	}
	if s := known(t, "in the end", b.disk, last); s.Number != 4 || s.Sequence != 1 {
		t.Errorf("journal at %d, sequence %d", s.Number, s.Sequence)
	}
}

// The last snapshot stays in force whatever fails, and comes back by itself.
func TestRunSurvivesFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		b := newBench(t, faultfs.New(), func(c *replica.Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
		// says tells which words the log has by now, and forgets them.
		says := func(when string, words ...string) {
			synctest.Wait()
			for _, w := range words {
				if !strings.Contains(log.String(), w) {
					t.Errorf("%s, the log lacks %q:\n%s", when, w, log.String())
				}
			}
			log.Reset()
		}
		away := errors.New("the token was pulled out")
		b.setKey(away)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- b.replica.Run(ctx) }()
		<-time.After(time.Minute)
		if err := b.replica.Ready(); !errors.Is(err, away) {
			t.Errorf("ready without a key = %v", err)
		}
		says("before the first", "making the first issuing CA failed; nothing is issued", "mend=\"put key and passphrase back where")
		b.setKey(nil)
		<-time.After(2 * time.Minute)
		first := b.authority.Current()
		if first == nil || b.replica.Ready() != nil {
			t.Fatalf("with the key: %v, %v", first, b.replica.Ready())
		}
		<-time.After(lifetime/2 - 3*time.Minute)
		if b.authority.Current() != first {
			t.Error("it renewed before half of its life")
		}
		b.setKey(away)
		<-time.After(10 * time.Minute)
		if b.authority.Current() != first || b.replica.Ready() != nil {
			t.Errorf("a failed renewal took the last snapshot away: %v", b.replica.Ready())
		}
		says("with one in force", "the last one stays in force")
		b.mu.Lock()
		tries := b.opened
		b.mu.Unlock()
		<-time.After(time.Hour)
		b.mu.Lock()
		tries = b.opened - tries
		b.mu.Unlock()
		if tries < 55 || tries > 65 {
			t.Errorf("%d attempts within an hour, want one a minute", tries)
		}
		b.setKey(nil)
		<-time.After(2 * time.Minute)
		if second := b.authority.Current(); second == first || second.Sequence() != first.Sequence() {
			t.Error("it did not renew when the key was back")
		}
		b.setKey(away)
		<-time.After(lifetime + time.Minute)
		if b.replica.Ready() == nil {
			t.Error("it is ready with an issuing CA that has ended")
		}
		says("after its end", "the last one has ended; nothing is issued")
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Near its root's end it does not renew ever faster.
func TestRenewsCalmlyAtTheEndOfTheRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, faultfs.Memory(), nil)
		if _, err := b.replica.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-time.After(catest.RootLifetime - 10*time.Hour)
		before := known(t, "before", b.disk, "").Number
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- b.replica.Run(ctx) }()
		<-time.After(10*time.Hour - time.Second)
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := known(t, "after", b.disk, "").Number - before; n > 20 {
			t.Errorf("%d issuing CAs were made in the last ten hours", n)
		}
	})
}

func TestRenewRefuses(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, b *bench) func(*replica.Config){
		"another trust domain": func(t *testing.T, _ *bench) func(*replica.Config) {
			return func(c *replica.Config) { c.TrustDomain = attesttest.Domain(t, "other.example") }
		},
		"a journal that was rolled back": func(t *testing.T, b *bench) func(*replica.Config) {
			old := b.disk.Reopen()
			if _, err := b.replica.Renew(t.Context()); err != nil {
				t.Fatal(err)
			}
			store, err := journal.OpenFile(old, dir)
			if err != nil {
				t.Fatal(err)
			}
			b.store = store
			return nil
		},
		"no journal": func(t *testing.T, b *bench) func(*replica.Config) {
			store, err := journal.OpenFile(faultfs.New(), dir)
			if err != nil {
				t.Fatal(err)
			}
			b.store = store
			return nil
		},
		"another root's key": func(t *testing.T, b *bench) func(*replica.Config) {
			b.rootKey = catest.Key(t)
			return nil
		},
	} {
		b := newBench(t, faultfs.New(), nil)
		b.start(t, change(t, b))
		before := b.disk.Ops()
		if _, err := b.replica.Renew(t.Context()); err == nil || b.authority.Current() != nil {
			t.Errorf("%s: renewed (%v)", name, err)
		}
		if name != "another root's key" && b.disk.Ops() != before {
			t.Errorf("%s: wrote", name)
		}
	}
}

// TestEveryFailedStep fails each operation of a replica's life, in each way, and
// holds the invariants after each renewal: whoever signs is durable in the
// journal, the sequence never falls, and there is one active root.
func TestEveryFailedStep(t *testing.T) {
	t.Parallel()
	for kind, fault := range map[string]faultfs.Fault{"not done": {Err: syscall.EIO}, "done": {Err: syscall.EIO, Done: true}, "short": {Err: syscall.ENOSPC, Short: 50}} {
		for n := 0; ; n++ {
			disk := faultfs.New()
			b := newBench(t, disk, nil)
			from, hit := disk.Ops(), false
			disk.Inject = func(op faultfs.Op) *faultfs.Fault {
				if op.N != from+n {
					return nil
				}
				hit = true
				return &fault
			}
			failures := 0
			for attempt := range 4 {
				when := fmt.Sprintf("operation %d failed (%s), attempt %d", n, kind, attempt)
				before := b.authority.Current()
				_, err := b.replica.Renew(t.Context())
				now := b.authority.Current()
				if err != nil {
					failures++
					if now != before {
						t.Fatalf("%s: it failed, and the snapshot is another", when)
					}
				} else if now == before {
					t.Fatalf("%s: it worked, and the snapshot is the same", when)
				}
				if now == nil {
					continue
				}
				// What a power cut leaves now, at the worst.
				s := known(t, when, cutNow(disk), now.AuthorityID())
				if len(s.In(journal.Active)) != 1 || s.Sequence < now.Sequence() {
					t.Fatalf("%s: %d active roots, sequence %d, and %d is given out", when, len(s.In(journal.Active)), s.Sequence, now.Sequence())
				}
			}
			if failures > 1 {
				t.Fatalf("operation %d failed (%s): %d renewals failed of one fault", n, kind, failures)
			}
			if !hit {
				if n < 30 {
					t.Fatalf("four renewals have only %d operations", n)
				}
				break
			}
		}
	}
}

func cutNow(disk *faultfs.Disk) *faultfs.Disk {
	end := len(disk.Log())
	for cut := range disk.Cuts() {
		if cut.After == end {
			return cut.Image(faultfs.Lost)
		}
	}
	panic("there is no last cut")
}

// A process that was killed at any point of its renewals goes on in the next.
func TestNextProcess(t *testing.T) {
	t.Parallel()
	disk := faultfs.New()
	b := newBench(t, disk, nil)
	for range 3 {
		if _, err := b.replica.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	from := disk.Ops()
	for cut := range disk.Cuts() {
		if cut.After == 0 || cut.Last.N < 12 { // there is no journal yet
			continue
		}
		for name, image := range cut.Images(6) {
			when := fmt.Sprintf("cut after %v of %d, %s", cut.Last, from, name)
			store, err := journal.OpenFile(image, dir)
			if err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			next := &bench{disk: image, store: store, rootKey: b.rootKey}
			next.start(t, nil)
			if _, err := next.replica.Renew(t.Context()); err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			known(t, when, cutNow(image), next.authority.Current().AuthorityID())
		}
	}
}

// The journal is folded on the way, and never grows without end.
func TestJournalStaysSmall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, faultfs.Memory(), nil)
		most := int64(0)
		for range 150 {
			if _, err := b.replica.Renew(t.Context()); err != nil {
				t.Fatal(err)
			}
			f, err := b.disk.Open(dir + "/journal.jsonl")
			if err != nil {
				t.Fatal(err)
			}
			size, err := f.Size()
			if err != nil {
				t.Fatal(err)
			}
			most = max(most, size)
			<-time.After(lifetime / 2)
		}
		if most > 256<<10 {
			t.Errorf("the journal had %d bytes", most)
		}
		if s := known(t, "in the end", b.disk, b.authority.Current().AuthorityID()); s.Number < 151 {
			t.Errorf("the journal ends at %d", s.Number)
		}
	})
}
