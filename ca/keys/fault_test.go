//go:build cgo && !nopkcs11

package keys_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/ceremony"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/keys"
	"github.com/hallmark-ca/hallmark/ca/keys/keystest"
)

// faulty is a token behind a module that has faults when it is told to.
type faulty struct {
	*keystest.Token
	module  string
	control string
}

// newFaulty builds testdata/faulty.c and puts a token behind it.
func newFaulty(t *testing.T) *faulty {
	t.Helper()
	token := keystest.New(t)
	dir := t.TempDir()
	f := &faulty{token, filepath.Join(dir, "faulty.so"), filepath.Join(dir, "control")}
	headers, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11").Output()
	must(t, err)
	compiler := "cc"
	if named := os.Getenv("CC"); named != "" {
		compiler = named
	}
	if out, err := exec.CommandContext(t.Context(), compiler, "-shared", "-fPIC", "-o", f.module, "-I", strings.TrimSpace(string(headers)), "testdata/faulty.c", "-ldl").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Setenv("HALLMARK_FAULT", f.control)
	t.Setenv("HALLMARK_SOFTHSM", token.Module)
	f.set(t, "")
	return f
}

func (f *faulty) URI() string { return f.Through(f.module) }

// set has the module fail as testdata/faulty.c says.
func (f *faulty) set(tb testing.TB, fault string) {
	tb.Helper()
	must(tb, os.WriteFile(f.control+".new", []byte(fault), 0o600))
	must(tb, os.Rename(f.control+".new", f.control))
}

// logins returns how often the module was logged in to.
func (f *faulty) logins(tb testing.TB) int {
	tb.Helper()
	text, err := os.ReadFile(f.control + ".logins")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		tb.Fatal(err)
	}
	return len(text)
}

// Whatever a device says that has lost a session, or itself: while it says it,
// nothing is signed, and afterwards the same signer signs.
func TestDeviceErrors(t *testing.T) {
	f := newFaulty(t)
	registry := prometheus.NewRegistry()
	s := inToken(t, f.URI(), func(c *keys.Config) { c.Registerer = registry })
	root := makeRoot(t, s)
	signer, err := ceremony.Roots{Keys: s}.Open(t.Context(), root)
	must(t, err)
	for _, code := range []uint{
		pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED,
		pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_KEY_HANDLE_INVALID,
		pkcs11.CKR_VENDOR_DEFINED + 7,
	} {
		must(t, sign(signer))
		f.set(t, fmt.Sprint(code))
		if err := sign(signer); !errors.Is(err, pkcs11.Error(code)) {
			t.Errorf("code %#x: %v", code, err)
		}
		if err := certify(t, s, root); !errors.Is(err, pkcs11.Error(code)) {
			t.Errorf("code %#x, opened: %v", code, err)
		}
		f.set(t, "")
		if err := sign(signer); err != nil {
			t.Errorf("after code %#x: %v", code, err)
		}
	}
	counted := map[string]float64{}
	families, err := registry.Gather()
	must(t, err)
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			name := family.GetName()
			for _, label := range metric.GetLabel() {
				name += " " + label.GetValue()
			}
			counted[name] = metric.GetCounter().GetValue()
		}
	}
	// Each code is met twice, once of it on a connection that was there.
	if counted["hallmark_key_device_calls_total failed"] != 18 || counted["hallmark_key_device_reopened_total"] != 9 {
		t.Errorf("counted: %v", counted)
	}
}

// A signature that does not verify is not used.
func TestDeviceSignsFalsely(t *testing.T) {
	f := newFaulty(t)
	s := inToken(t, f.URI(), nil)
	root := makeRoot(t, s)
	signer, err := ceremony.Roots{Keys: s}.Open(t.Context(), root)
	must(t, err)
	f.set(t, "flip")
	if err := sign(signer); err == nil || !strings.Contains(err.Error(), "does not verify") {
		t.Errorf("signed: %v", err)
	}
	f.set(t, "")
	must(t, sign(signer))
}

// eventually waits until ok, which is asked again and again.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("waited too long until %s", what)
		}
	}
}

// A device that hangs holds nobody: each caller goes at its deadline, and after
// four calls that have not come back no other is begun. When it comes back, all
// is as before.
func TestDeviceHangs(t *testing.T) {
	f := newFaulty(t)
	s := inToken(t, f.URI(), func(c *keys.Config) { c.Timeout = 200 * time.Millisecond })
	root := makeRoot(t, s)
	signer, err := ceremony.Roots{Keys: s}.Open(t.Context(), root)
	must(t, err)
	f.set(t, "hang")
	defer f.set(t, "")
	start := time.Now()
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("the caller is gone")
	time.AfterFunc(50*time.Millisecond, func() { cancel(gone) })
	if _, err := s.Open(ctx, root.KeyURI, certOf(t, root)); !errors.Is(err, gone) {
		t.Errorf("its caller went: %v", err)
	}
	for range 3 {
		if err := sign(signer); err == nil || !strings.Contains(err.Error(), "in time") {
			t.Errorf("signing: %v", err)
		}
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("four calls took %s", took)
	}
	if err := sign(signer); err == nil || !strings.Contains(err.Error(), "4 calls") || !strings.Contains(err.Error(), "have not come back") {
		t.Errorf("a fifth call was begun: %v", err)
	}
	if _, _, err := (ceremony.Roots{Keys: s}).Make(t.Context(), attesttest.Domain(t, "cluster.local"), catest.RootLifetime, time.Now()); err == nil {
		t.Error("a key was made")
	}
	f.set(t, "")
	eventually(t, "it signs again", func() bool { return sign(signer) == nil })
	must(t, certify(t, s, root))
}

// A key that was made after nobody waited for it any more is destroyed again.
func TestDeviceMakesLate(t *testing.T) {
	f := newFaulty(t)
	s := inToken(t, f.URI(), nil)
	kept := makeRoot(t, s)
	f.set(t, "make") // the key is there, and the call has not come back
	ctx, cancel := context.WithCancel(t.Context())
	made := make(chan error, 1)
	go func() {
		_, _, err := (ceremony.Roots{Keys: s}).Make(ctx, attesttest.Domain(t, "cluster.local"), catest.RootLifetime, time.Now())
		made <- err
	}()
	eventually(t, "the key is there", func() bool { return f.Objects(t) == 4 })
	cancel()
	if err := <-made; !errors.Is(err, context.Canceled) {
		t.Fatalf("made: %v", err)
	}
	f.set(t, "")
	eventually(t, "it is gone again", func() bool { return f.Objects(t) == 2 })
	must(t, certify(t, s, kept))
}

// A PIN that the token refused is not tried again before its file is written
// anew: a token locks itself after a few.
func TestPINIsNotTriedTwice(t *testing.T) {
	f := newFaulty(t)
	s := inToken(t, f.URI(), nil)
	root := makeRoot(t, s)
	must(t, s.Close())
	must(t, os.WriteFile(f.PINFile, []byte("0000\n"), 0o600))
	before := f.logins(t)
	for n := range 5 {
		err := certify(t, s, root)
		if err == nil || !strings.Contains(err.Error(), "refused the PIN in "+f.PINFile) || strings.Contains(err.Error(), "0000") {
			t.Errorf("try %d: %v", n, err)
		}
	}
	if n := f.logins(t) - before; n != 1 {
		t.Errorf("the token was asked %d times", n)
	}
	if err := s.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "not asked again") {
		t.Errorf("check: %v", err)
	}
	must(t, os.WriteFile(f.PINFile, []byte(keystest.PIN+"\n"), 0o600))
	must(t, certify(t, s, root))
	must(t, s.Check(t.Context()))
	// Locked: the same PIN is right again when somebody has unlocked the token,
	// and says so by touching the file.
	must(t, s.Close())
	f.set(t, fmt.Sprintf("login %d", uint(pkcs11.CKR_PIN_LOCKED)))
	before = f.logins(t)
	for range 3 {
		if err := certify(t, s, root); err == nil {
			t.Error("opened with a locked PIN")
		}
	}
	if n := f.logins(t) - before; n != 1 {
		t.Errorf("a locked token was asked %d times", n)
	}
	f.set(t, "")
	later := time.Now().Add(time.Second)
	must(t, os.Chtimes(f.PINFile, later, later))
	must(t, certify(t, s, root))
}

// What a PIN file must not be.
func TestPINFile(t *testing.T) {
	token := keystest.New(t)
	s := inToken(t, token.URI(), nil)
	for name, tt := range map[string]struct {
		text string
		mode os.FileMode
		want string
	}{
		"for everyone": {keystest.PIN, 0o644, "can be read by everyone"},
		"empty":        {"\n", 0o600, "one line of 1 to 255 bytes"},
		"two lines":    {keystest.PIN + "\nsecret", 0o600, "one line"},
		"endless":      {strings.Repeat("1", 300), 0o600, "more than 256 bytes"},
	} {
		must(t, os.WriteFile(token.PINFile, []byte(tt.text), tt.mode))
		must(t, os.Chmod(token.PINFile, tt.mode))
		if err := s.Check(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), keystest.PIN) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, os.Remove(token.PINFile))
	if err := s.Check(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("none: %v", err)
	}
}

// Many sign, open and close at once, while the device fails now and then; no
// wrong signature gets out, and in the end all works.
func TestDeviceUsedByMany(t *testing.T) {
	f := newFaulty(t)
	s := inToken(t, f.URI(), nil)
	both := []journal.Root{makeRoot(t, s), makeRoot(t, s)}
	stop := make(chan struct{})
	var faults, users sync.WaitGroup
	faults.Go(func() {
		tick := time.NewTicker(3 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			f.set(t, []string{"", "", "48", "", "flip", "179"}[n%6]) // CKR_DEVICE_ERROR, CKR_SESSION_HANDLE_INVALID
		}
	})
	good := make(chan struct{}, 1000)
	for n := range 4 {
		users.Go(func() {
			for range 25 {
				root := both[n%2]
				if err := certify(t, s, root); err == nil {
					good <- struct{}{}
				}
			}
			if n == 3 {
				_ = s.Close()
			}
		})
	}
	users.Wait()
	close(stop)
	faults.Wait()
	f.set(t, "")
	if len(good) == 0 {
		t.Error("nothing was signed at all")
	}
	for _, root := range both {
		must(t, certify(t, s, root))
	}
}
