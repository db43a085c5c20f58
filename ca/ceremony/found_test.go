package ceremony_test

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/ca/ceremony"
	"github.com/hallmark-ca/hallmark/ca/durable"
	"github.com/hallmark-ca/hallmark/ca/durable/faultfs"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/keys"
)

const passphrase = "correct horse battery staple"

// founding founds on fsys, which holds the keys beside the folder of the journal.
func founding(t *testing.T, fsys durable.FS) ceremony.Founding {
	t.Helper()
	return ceremony.Founding{
		TrustDomain: attesttest.Domain(t, "cluster.local"), Lifetime: 5 * 365 * 24 * time.Hour,
		Roots: roots(t, t.TempDir(), fsys), FS: fsys, JournalDir: "journal", By: "test", Now: time.Now(),
	}
}

// roots are sealed in dir, and written through fsys.
func roots(t *testing.T, dir string, fsys durable.FS) ceremony.Roots {
	t.Helper()
	secret := filepath.Join(t.TempDir(), "passphrase")
	if err := os.WriteFile(secret, []byte(passphrase+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	store, err := keys.New(keys.Config{Dir: dir, PassphraseFile: secret, FS: fsys})
	if err != nil {
		t.Fatal(err)
	}
	return ceremony.Roots{Keys: store}
}

// The root that was founded can be opened, and a second founding changes nothing.
func TestFound(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	fsys := durable.OS(dir)
	f := founding(t, fsys)
	f.Roots = roots(t, dir, nil)
	root, err := ceremony.Found(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(root.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	id := hex.EncodeToString(cert.SubjectKeyId)
	if root.ID != id || cert.Subject.String() != "CN=Hallmark root "+id[:8]+",O=cluster.local" || !cert.IsCA || cert.MaxPathLen != 1 {
		t.Errorf("root %s is named %q", root.ID, cert.Subject)
	}
	if _, err := f.Roots.Open(t.Context(), root); err != nil {
		t.Error(err)
	}
	before := files(t, fsys)
	if _, err := ceremony.Found(t.Context(), f); !errors.Is(err, ceremony.ErrFounded) {
		t.Errorf("founded once more: %v", err)
	}
	if after := files(t, fsys); after != before {
		t.Errorf("a second founding left %s, before there was %s", after, before)
	}
}

func files(t *testing.T, fsys durable.FS) string {
	t.Helper()
	var out []string
	for _, dir := range []string{".", "journal"} {
		names, err := fsys.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, names...)
	}
	return strings.Join(out, " ")
}

// afterCut reads what a power cut leaves of disk at the worst.
func afterCut(t *testing.T, when string, disk *faultfs.Disk) journal.State {
	t.Helper()
	end := len(disk.Log())
	for cut := range disk.Cuts() {
		if cut.After == end {
			return stateOf(t, when, cut.Image(faultfs.Lost))
		}
	}
	return journal.State{}
}

// stateOf reads the journal, and wants the key of its root beside it.
func stateOf(t *testing.T, when string, disk *faultfs.Disk) journal.State {
	t.Helper()
	s, err := journal.ReadFile(disk, "journal")
	if errors.Is(err, journal.ErrNoJournal) {
		return s
	}
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	root, ok := s.ActiveRoot()
	if !ok || len(s.Roots) != 1 {
		t.Fatalf("%s: %d roots", when, len(s.Roots))
	}
	sealed, err := durable.Read(disk, strings.TrimPrefix(root.KeyURI, "softkms:path="), 1<<16)
	if err != nil {
		t.Fatalf("%s: the journal names a key that is not there: %v", when, err)
	}
	if block, _ := pem.Decode(sealed); block == nil || block.Type != "ENCRYPTED PRIVATE KEY" {
		t.Fatalf("%s: the key is %q", when, sealed)
	}
	return s
}

// TestEveryFailedStep fails each operation of the founding, then tries again:
// there is one root in the end, its key is there, and no cut between takes
// either away.
func TestEveryFailedStep(t *testing.T) {
	t.Parallel()
	var operations []faultfs.Op // of a founding in which nothing fails
	for _, fault := range []faultfs.Fault{{Err: syscall.EIO}, {Err: syscall.EIO, Done: true}, {Err: syscall.ENOSPC, Short: 100}} {
		for n := 0; ; n++ {
			when := fmt.Sprintf("operation %d failed (%+v)", n, fault)
			if fault.Short > 0 && n < len(operations) && operations[n].Kind != faultfs.Write {
				continue
			}
			disk := faultfs.New()
			hit := false
			disk.Inject = func(op faultfs.Op) *faultfs.Fault {
				if op.N != n {
					return nil
				}
				hit = true
				return &fault
			}
			root, err := ceremony.Found(context.Background(), founding(t, disk))
			if !hit {
				operations = disk.Log()
				break
			}
			durableNow := afterCut(t, when, disk)
			if err == nil && durableNow.Number != 1 {
				t.Fatalf("%s: reported founded, and a cut leaves nothing", when)
			}
			again, secondErr := ceremony.Found(context.Background(), founding(t, disk))
			switch {
			case errors.Is(secondErr, ceremony.ErrFounded): // reported failed, but was stored
			case secondErr != nil:
				t.Fatalf("%s: the second try: %v", when, secondErr)
			default:
				root = again
			}
			end := afterCut(t, when+", then founded", disk)
			if end.Number != 1 || root.ID != "" && end.Roots[0].ID != root.ID {
				t.Fatalf("%s: a cut leaves record %d", when, end.Number)
			}
		}
	}
	if len(operations) < 11 {
		t.Fatalf("a founding has only %d operations", len(operations))
	}
	// And a cut after each of them.
	disk := faultfs.New()
	if _, err := ceremony.Found(context.Background(), founding(t, disk)); err != nil {
		t.Fatal(err)
	}
	for cut := range disk.Cuts() {
		for name, image := range cut.Images(40) {
			stateOf(t, fmt.Sprintf("cut after %v, %s", cut.Last, name), image)
		}
	}
}
