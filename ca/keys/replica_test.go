//go:build cgo && !nopkcs11

package keys_test

import (
	"context"
	"log/slog"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/ceremony"
	"github.com/hallmark-ca/hallmark/ca/durable"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/keys/keystest"
	"github.com/hallmark-ca/hallmark/ca/replica"
)

// A replica whose root is in a token: it renews its issuing CA, signs on under
// the last one while the token is away, and renews again when it is back, also
// in a new process that starts in between.
func TestReplicaOnToken(t *testing.T) {
	token := keystest.New(t)
	dir := t.TempDir()
	fsys, td := durable.OS(dir), attesttest.Domain(t, "cluster.local")
	s := inToken(t, token.URI(), nil)
	root, err := ceremony.Found(t.Context(), ceremony.Founding{
		TrustDomain: td, Lifetime: catest.RootLifetime, Roots: ceremony.Roots{Keys: s},
		FS: fsys, JournalDir: "journal", By: "test", Now: time.Now(),
	})
	must(t, err)
	store, err := journal.OpenFile(fsys, "journal")
	must(t, err)
	defer store.Close()
	start := func() (*ca.Authority, *replica.Replica) {
		authority, err := ca.New(ca.Config{
			Leaf: catest.LeafProfile(t), Ledger: &catest.Ledger{}, Registerer: prometheus.NewRegistry(),
			Log: slog.New(slog.DiscardHandler), Now: time.Now,
		})
		must(t, err)
		r, err := replica.New(replica.Config{
			ID: "r1", TrustDomain: td, Store: store, OpenKey: inToken(t, token.URI(), nil).Open, Authority: authority,
			Lifetime: catest.IssuingLifetime, MemoFS: fsys, MemoFile: "seen", Registerer: prometheus.NewRegistry(),
			Log: slog.New(slog.DiscardHandler), Now: time.Now,
		})
		must(t, err)
		return authority, r
	}
	authority, r := start()
	issuer, err := r.Renew(t.Context())
	must(t, err)
	must(t, issuer.CheckSignatureFrom(certOf(t, root)))

	// Readers are served throughout.
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var unready atomic.Int32
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if authority.Current() == nil || r.Ready() != nil {
				unready.Add(1)
			}
		}
	}()
	must(t, os.Rename(token.Dir, token.Dir+".away"))
	must(t, s.Close())
	failed := 0
	for range 20 {
		if _, err := r.Renew(t.Context()); err != nil {
			failed++
		}
	}
	if failed == 0 {
		t.Error("the token is away, and every renewal worked")
	}
	later, second := start()
	if _, err := second.Renew(t.Context()); err == nil || later.Current() != nil {
		t.Errorf("a process that starts without a token signs: %v", err)
	}
	must(t, os.Rename(token.Dir+".away", token.Dir))
	for name, r := range map[string]*replica.Replica{"the first": r, "the second": second} {
		if again, err := r.Renew(t.Context()); err != nil || again.Equal(issuer) {
			t.Errorf("the token is back, and %s does not renew: %v", name, err)
		}
	}
	cancel()
	<-done
	if n := unready.Load(); n > 0 {
		t.Errorf("%d times it was not ready", n)
	}
}
