package ceremony_test

import (
	"crypto/x509"
	"errors"
	"io/fs"
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
	"github.com/hallmark-ca/hallmark/ca/rotate"
)

// What a rotation needs of keys is here.
var _ rotate.Keys = ceremony.Roots{}

// A key is made, opened by another store, and destroyed; each root has a name
// and a key of its own.
func TestRootsInFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := roots(t, dir, nil)
	td, now := attesttest.Domain(t, "cluster.local"), time.Now()
	a, key, err := r.Make(t.Context(), td, 24*time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := r.Make(t.Context(), td, 24*time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	if a.ID == b.ID || a.KeyURI == b.KeyURI || a.Phase != journal.Prepared {
		t.Errorf("two roots: %+v, %+v", a, b)
	}
	again, err := roots(t, dir, nil).Open(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	if public, ok := key.Public().(interface{ Equal(x any) bool }); ok && !public.Equal(again.Public()) {
		t.Error("another key was opened")
	}
	crossed := a
	crossed.KeyURI = b.KeyURI
	if err := r.Destroy(t.Context(), crossed); err == nil || !strings.Contains(err.Error(), "not the key of") {
		t.Errorf("a key was destroyed in the name of another: %v", err)
	}
	for range 2 { // the second time it is gone
		if err := r.Destroy(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Open(t.Context(), a); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a destroyed key: %v", err)
	}
	if _, err := r.Open(t.Context(), b); err != nil {
		t.Errorf("the other key: %v", err)
	}
	trusted := b
	trusted.KeyURI = ""
	if _, err := r.Open(t.Context(), trusted); err == nil || !strings.Contains(err.Error(), "only trusted") {
		t.Errorf("a trusted root has a key: %v", err)
	}
	if err := r.Destroy(t.Context(), trusted); err == nil {
		t.Error("a trusted root has a key to be destroyed")
	}
	outside := b
	outside.KeyURI = "softkms:path=../other.pem"
	if err := os.WriteFile(filepath.Join(filepath.Dir(dir), "other.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Destroy(t.Context(), outside); err == nil {
		t.Error("a file outside of the folder was removed")
	}
}

// Once Destroy has returned, no power cut brings the key back; where it failed,
// the next one finishes it.
func TestDestroyIsDurable(t *testing.T) {
	t.Parallel()
	for n := range 3 {
		disk := faultfs.New()
		r := roots(t, t.TempDir(), disk)
		root, _, err := r.Make(t.Context(), attesttest.Domain(t, "cluster.local"), 24*time.Hour, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		first := disk.Ops() + n
		disk.Inject = func(op faultfs.Op) *faultfs.Fault {
			if op.N == first {
				return &faultfs.Fault{Err: syscall.EIO, Done: n == 1}
			}
			return nil
		}
		err = r.Destroy(t.Context(), root)
		first = -1
		if (err == nil) != (n == 2) { // there are two operations
			t.Fatalf("operation %d failed: %v", n, err)
		}
		if err := r.Destroy(t.Context(), root); err != nil {
			t.Fatalf("operation %d failed, then again: %v", n, err)
		}
		end := len(disk.Log())
		for cut := range disk.Cuts() {
			if cut.After != end {
				continue
			}
			for name, image := range cut.Images(20) {
				if _, err := durable.Read(image, strings.TrimPrefix(root.KeyURI, "softkms:path="), 1<<16); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("operation %d failed, then again, cut (%s): the key is there: %v", n, name, err)
				}
			}
		}
	}
}

// A key is there before a root that names it is given out: no cut after Make
// takes it away.
func TestMakeIsDurable(t *testing.T) {
	t.Parallel()
	disk := faultfs.New()
	root, _, err := roots(t, t.TempDir(), disk).Make(t.Context(), attesttest.Domain(t, "cluster.local"), 24*time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x509.ParseCertificate(root.Certificate); err != nil {
		t.Fatal(err)
	}
	end := len(disk.Log())
	for cut := range disk.Cuts() {
		if cut.After != end {
			continue
		}
		for name, image := range cut.Images(20) {
			if _, err := durable.Read(image, strings.TrimPrefix(root.KeyURI, "softkms:path="), 1<<16); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}
