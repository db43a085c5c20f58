package admin_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hallmark-ca/hallmark/cmd/internal/admin"
	"github.com/hallmark-ca/hallmark/cmd/internal/admin/admintest"
)

// me is how the server names this process.
func me() string {
	uid := os.Geteuid()
	if uid == 0 {
		return "uid 0 (root)"
	}
	name := "the server's own account"
	if account, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		name = account.Username
	}
	return fmt.Sprintf("uid %d (%s)", uid, name)
}

func listen(t *testing.T, dir string) (func(), error) {
	t.Helper()
	l, err := admin.Listen(t.Context(), filepath.Join(dir, admin.SocketName))
	if err != nil {
		return nil, err
	}
	return l.Remove, nil
}

func TestSocketMode(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	remove, err := listen(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{dir: os.ModeDir | 0o700, filepath.Join(dir, admin.SocketName): os.ModeSocket | 0o600} {
		info, err := os.Lstat(path)
		if err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
	remove()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestStaleSocket: what a killed server has left is replaced, what lives is not,
// and nothing that is no socket is touched.
func TestStaleSocket(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, admin.SocketName)
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false) // as kill -9 leaves it
	if _, err := listen(t, dir); err == nil || !strings.Contains(err.Error(), "another process answers") {
		t.Errorf("beside a live one: %v", err)
	}
	old.Close()
	// One that died between making the socket and giving it its name.
	if err := os.WriteFile(filepath.Join(dir, "admin.new"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	remove, err := listen(t, dir)
	if err != nil {
		t.Fatalf("in place of a dead one: %v", err)
	}
	remove()

	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(t, dir); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("in place of a file: %v", err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "mine" {
		t.Errorf("the file is now %q, %v", text, err)
	}
}

// TestSocketOfAnother: a server that ends leaves alone what another has put in
// its place.
func TestSocketOfAnother(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, admin.SocketName)
	first, err := listen(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := listen(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	first()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the second one's socket: %v", err)
	}
	second()
}

func TestOpenFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(t, dir); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("in a folder that is everyone's: %v", err)
	}
}

func TestLongPath(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	fill := func(n int) string {
		room := n - len(base) - len("//"+admin.SocketName)
		return filepath.Join(base, strings.Repeat("x", room), admin.SocketName)
	}
	fits, long := fill(admin.MaxPath), fill(admin.MaxPath+1)
	if _, err := admin.NewClient(long); err == nil || !strings.Contains(err.Error(), "1 shorter") {
		t.Errorf("a path of %d bytes: %v", len(long), err)
	}
	if _, err := admin.NewClient("state/" + admin.SocketName); err == nil {
		t.Error("a relative path is taken")
	}
	s := admintest.Serve(t, filepath.Dir(fits), &admintest.Rotation{}, admin.Facts{})
	if _, err := client(t, s.Socket).Rotation(t.Context()); err != nil {
		t.Errorf("a path of %d bytes: %v", len(fits), err)
	}
}

func TestNoServer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, admin.SocketName)
	check := func(what string) {
		t.Helper()
		if _, err := client(t, path).Status(t.Context()); !errors.Is(err, admin.ErrNoServer) || !strings.Contains(err.Error(), "start hallmark serve") {
			t.Errorf("%s: %v", what, err)
		}
	}
	check("without a socket")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	check("with the socket of a dead server")
}

// TestMuteServer: one that accepts and never answers does not hold a client.
func TestMuteServer(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), admin.SocketName)
	mute, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := client(t, path).Status(ctx)
		ended <- err
	}()
	conn, err := mute.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("status = %v", err)
	}
}

// TestOtherAccount connects as another account, through a socket whose mode has
// been opened: what the kernel says of the peer decides.
func TestOtherAccount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become another account")
	}
	t.Parallel()
	r := &admintest.Rotation{}
	s := admintest.Serve(t, t.TempDir(), r, admin.Facts{})
	for path := filepath.Dir(s.Socket); path != os.TempDir() && path != "/"; path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const nobody = 65534
	asNobody := func() (string, error) {
		conn, err := net.Dial("unix", s.Socket)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		fmt.Fprint(conn, "POST /v1/rotation/start HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
		answer := make([]byte, 4096)
		n, err := conn.Read(answer)
		return string(answer[:n]), err
	}
	as := func(uid int, do func() (string, error)) (answer string, err error) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			// The account is this thread's alone, which ends with the goroutine.
			runtime.LockOSThread()
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
				err = errno
				return
			}
			answer, err = do()
		}()
		<-done
		return answer, err
	}
	if _, err := as(nobody, asNobody); !errors.Is(err, unix.EACCES) {
		t.Errorf("through mode 0600: %v", err)
	}
	if err := os.Chmod(s.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	answer, err := as(nobody, asNobody)
	if err != nil || !strings.HasPrefix(answer, "HTTP/1.1 403 ") {
		t.Errorf("through mode 0666: %q, %v", answer, err)
	}
	if calls := r.Calls(); len(calls) > 0 {
		t.Errorf("steps were taken: %q", calls)
	}
	if !strings.Contains(s.Log.String(), "uid 65534 may not ask") {
		t.Errorf("the log does not say who:\n%s", s.Log)
	}
}
