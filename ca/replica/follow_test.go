package replica_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/durable/faultfs"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/replica"
)

// life is a bench whose journal goes through the phases of several roots.
type life struct {
	*bench
	keys map[string]*ecdsa.PrivateKey // by journal.Root.ID
	away map[string]bool
}

func newLife(t *testing.T) *life {
	t.Helper()
	l := &life{keys: map[string]*ecdsa.PrivateKey{}, away: map[string]bool{}}
	l.bench = newBench(t, faultfs.New(), func(c *replica.Config) { c.OpenKey = l.open })
	l.keys[l.state(t).Roots[0].ID] = l.rootKey
	if _, err := l.replica.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *life) open(_ context.Context, _ string, cert *x509.Certificate) (crypto.Signer, error) {
	id := hex.EncodeToString(cert.SubjectKeyId)
	if l.away[id] {
		return nil, errors.New("the key is away")
	}
	return l.keys[id], nil
}

func (l *life) state(t *testing.T) journal.State {
	t.Helper()
	state, err := l.store.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// write journals body under the active root and every root of also.
func (l *life) write(t *testing.T, body journal.Body, also ...string) {
	t.Helper()
	state := l.state(t)
	active, _ := state.ActiveRoot()
	body.Time, body.TrustDomain, body.By = time.Now(), state.TrustDomain, "test"
	var signers []journal.Signer
	for _, id := range append(also, active.ID) {
		signers = append(signers, journal.Signer{Root: id, Key: l.keys[id]})
	}
	rec, err := journal.NewRecord(state, body, signers...)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.store.Append(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
}

// prepare journals a new root and returns its id.
func (l *life) prepare(t *testing.T) string {
	t.Helper()
	key := catest.Key(t)
	cert := catest.Certify(t, ca.Root, attesttest.Domain(t, "cluster.local"), key, ca.Parent{}, catest.RootLifetime, time.Now())
	id := hex.EncodeToString(cert.SubjectKeyId)
	l.keys[id] = key
	l.write(t, journal.Body{Added: &journal.Root{ID: id, Certificate: cert.Raw, KeyURI: "softkms:path=" + id, Phase: journal.Prepared, Since: time.Now()}}, id)
	return id
}

func (l *life) step(t *testing.T, root string, to journal.Phase) {
	t.Helper()
	l.write(t, journal.Body{Step: &journal.Step{Root: root, To: to}}, root)
}

func (l *life) follow(t *testing.T) {
	t.Helper()
	if err := l.replica.Follow(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// serving returns the root that our own certificate is under.
func (l *life) serving(t *testing.T) string {
	t.Helper()
	issued, err := l.authority.Mint(t.Context(), ca.Serving{ID: "serving", DNS: []string{"hallmark.example"}}, catest.Key(t).Public())
	if err != nil {
		t.Fatal(err)
	}
	return issued.Snapshot.RootID()
}

// want checks what is in force: how many roots are trusted, which of them leaves
// are under, and which our own certificate.
func (l *life) want(t *testing.T, when string, trusted int, leaves, serving string) {
	t.Helper()
	snap := l.authority.Current()
	if got := len(snap.Roots()); got != trusted || snap.RootID() != leaves || snap.Sequence() != l.state(t).Sequence {
		t.Errorf("%s: %d roots are trusted, leaves are under %s, sequence %d; want %d, %s, %d", when, got, snap.RootID(), snap.Sequence(), trusted, leaves, l.state(t).Sequence)
	}
	if got := l.serving(t); got != serving {
		t.Errorf("%s: our own certificate is under %s, want %s", when, got, serving)
	}
}

func TestFollowsTheLifeOfARoot(t *testing.T) {
	t.Parallel()
	l := newLife(t)
	first := l.state(t).Roots[0].ID
	issuer := l.authority.Current().AuthorityID()

	second := l.prepare(t)
	l.follow(t)
	l.want(t, "prepared", 1, first, first)
	l.step(t, second, journal.Published)
	l.follow(t)
	l.want(t, "published", 2, first, first)
	if l.authority.Current().AuthorityID() != issuer {
		t.Error("a new bundle made a new issuing CA")
	}

	l.step(t, second, journal.Active)
	l.follow(t)
	l.want(t, "active", 2, second, first)
	records := l.state(t).Number
	l.follow(t)
	if got := l.state(t).Number; got != records {
		t.Errorf("Follow wrote %d records where nothing had changed", got-records)
	}

	if err := l.replica.Rehearse(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	l.want(t, "rehearsing", 2, second, second)
	if err := l.replica.Rehearse(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	l.want(t, "rehearsal taken back", 2, second, first)
	if got := l.state(t).Number; got != records {
		t.Errorf("a rehearsal wrote %d records: the issuing CA at hand was not used", got-records)
	}

	l.step(t, first, journal.Retired)
	l.follow(t)
	l.want(t, "retired", 1, second, second)
}

func TestFollowAfterARestartInTheMiddle(t *testing.T) {
	t.Parallel()
	l := newLife(t)
	first := l.state(t).Roots[0].ID
	second := l.prepare(t)
	l.step(t, second, journal.Published)
	l.step(t, second, journal.Active)
	// The new process has no issuing CA under the old root at hand.
	l.start(t, func(c *replica.Config) { c.OpenKey = l.open })
	l.follow(t)
	l.want(t, "after the restart", 2, second, first)
	state := l.state(t)
	last := state.Issuing[len(state.Issuing)-1]
	if last.Root != first || !last.Serving {
		t.Errorf("the last issuing CA is under %s, serving: %v; want one for serving under the old root", last.Root, last.Serving)
	}

	// The old root's key is away: leaves are signed all the same.
	l.away[first] = true
	l.start(t, func(c *replica.Config) { c.OpenKey = l.open })
	if err := l.replica.Follow(t.Context()); err == nil {
		t.Error("nothing was said of the old root's key")
	}
	if snap := l.authority.Current(); snap == nil || snap.RootID() != second {
		t.Error("leaves are not signed while the old root's key is away")
	}
}

func TestTaintedIssuingCAIsReplaced(t *testing.T) {
	t.Parallel()
	l := newLife(t)
	before := l.authority.Current().AuthorityID()
	l.write(t, journal.Body{Taint: &journal.Taint{Issuing: before, Reason: "a test"}})
	l.follow(t)
	if got := l.authority.Current().AuthorityID(); got == before {
		t.Error("the tainted issuing CA is still in force")
	}
}

func TestFollowLeavesWhatIsInForceWhenItFails(t *testing.T) {
	t.Parallel()
	l := newLife(t)
	before := l.authority.Current()
	second := l.prepare(t)
	l.step(t, second, journal.Published)
	l.step(t, second, journal.Active)
	l.away[second] = true
	if err := l.replica.Follow(t.Context()); err == nil {
		t.Fatal("Follow did without the new root's key")
	}
	if l.authority.Current() != before {
		t.Error("another snapshot is in force")
	}
	delete(l.away, second)
	l.follow(t)
	l.want(t, "once the key is back", 2, second, l.state(t).Roots[0].ID)
}
