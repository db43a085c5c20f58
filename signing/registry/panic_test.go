package registry_test

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing/registry"
)

// fuse is a clock that panics once, when it is read for the nth time: every
// request reads it, in the goroutine that makes the request.
type fuse struct {
	nth, read atomic.Int64
}

func (f *fuse) now() time.Time {
	if f.read.Add(1) == f.nth.Load() {
		panic("a parser's bug")
	}
	return time.Now()
}

// safely runs what a test asks, and tells whether a panic came out of it: that
// one is the caller's to recover, as package signing does.
func safely(ask func() error) (came bool, err error) {
	defer func() { came = recover() != nil }()
	return false, ask()
}

// TestPanicEndsNoProcess: wherever a panic happens in the goroutines of a
// collection, it is an error or a remark. Not recovered, it would end this test.
func TestPanicEndsNoProcess(t *testing.T) {
	t.Parallel()
	b := newBench(t, true)
	s, _ := b.pushIndex("v1", 3)
	b.attach(s, `{"n":1}`)
	b.sign(s, "one")
	f := &fuse{}
	c := b.client(func(cfg *registry.Config) { cfg.Now = f.now })
	if e, err := c.Collect(t.Context(), s); err != nil || len(e.Signatures) != 2 {
		t.Fatalf("%v, %v", e, err)
	}
	reads := map[string]int64{}
	count := func(what string, ask func() error) {
		f.nth.Store(0)
		before := f.read.Load()
		if err := ask(); err != nil {
			t.Fatal(err)
		}
		reads[what] = f.read.Load() - before
	}
	var remarked, refused int
	collect := func() error {
		e, err := c.Collect(t.Context(), s)
		if err == nil && e.Incomplete {
			remarked++
			wantSkipped(t, e, "panic: a parser's bug")
		} else if err == nil && f.nth.Load() > 0 {
			t.Error("the panic left no trace")
		}
		return err
	}
	resolve := func() error { _, err := c.Resolve(t.Context(), b.host+"/team/app:v1"); return err }
	for what, ask := range map[string]func() error{"collect": collect, "resolve": resolve} {
		count(what, ask)
		for n := range reads[what] {
			f.nth.Store(f.read.Load() + n + 1)
			came, err := safely(ask)
			if came || err == nil {
				continue
			}
			var deny *attest.DenyError
			if !errors.As(err, &deny) || deny.Reason != attest.RegistryAway || !strings.Contains(fmt.Sprint(err), "panic: a parser's bug") {
				t.Errorf("%s, read %d: %v", what, n, err)
			}
			refused++
		}
	}
	// Which request reads the clock nth is chance. Of a collection the caller's own
	// goroutine reads twice, of a tag once.
	if want := int(reads["collect"] - 2 + reads["resolve"] - 1); want != 12 || remarked+refused != want || remarked < 6 || refused < 2 {
		t.Errorf("%d remarks and %d refusals of %v reads", remarked, refused, reads)
	}
}
