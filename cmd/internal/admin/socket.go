package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxPath is what fits a sockaddr_un, in bytes: its 108 end with a zero.
const maxPath = 107

// dialTime bounds a dial: the kernel answers at once, or the server's queue is
// full.
const dialTime = 2 * time.Second

func checkPath(socket string) error {
	switch {
	case !filepath.IsAbs(socket) || filepath.Base(socket) != SocketName:
		return fmt.Errorf("%q is no absolute path that ends with %s", socket, SocketName)
	case len(socket) > maxPath:
		return fmt.Errorf("the path of the socket has %d bytes, and the kernel takes %d: name a state directory with a path that is %d shorter (%s)",
			len(socket), maxPath, len(socket)-maxPath, socket)
	}
	return nil
}

// listener is the socket under its final name.
type listener struct {
	*net.UnixListener
	path string
	made os.FileInfo
}

// listen makes the socket, in place of one that a process has left that is dead.
//
// It is made under another name and gets its mode before it gets its own, so
// that at no moment one is found there that is open to others, and a client
// finds the old one or the new one.
func listen(ctx context.Context, path string) (*listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	// A volume's folder may be its group's, which is ours alone; never everyone's.
	if info.Mode().Perm()&0o002 != 0 {
		return nil, fmt.Errorf("%s can be written by everyone (mode %#o), who could put a socket of theirs in our place: chmod 700 %s", dir, info.Mode().Perm(), dir)
	}
	if err := vacant(ctx, path); err != nil {
		return nil, err
	}
	// Shorter than its final name, so that its length is no concern.
	temp := strings.TrimSuffix(path, filepath.Ext(path)) + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	raw, err := (&net.ListenConfig{}).Listen(ctx, "unix", temp)
	if err != nil {
		return nil, err
	}
	l := &listener{UnixListener: raw.(*net.UnixListener), path: path}
	l.SetUnlinkOnClose(false) // it knows the other name alone
	err = os.Chmod(temp, 0o600)
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err == nil {
		l.made, err = os.Lstat(path)
	}
	if err != nil {
		os.Remove(temp)
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// vacant returns nil if nobody listens on path: nothing is there, or the socket
// of a process that is dead.
func vacant(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is no socket, and not ours to replace: remove it", path)
	}
	conn, err := (&net.Dialer{Timeout: dialTime}).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		conn.Close()
		return fmt.Errorf("another process answers on %s: one server runs on a state directory", path)
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return fmt.Errorf("finding out whether another process answers on %s: %w", path, err)
}

// remove takes the socket away, if it is still the one that was made.
func (l *listener) remove() {
	_ = l.Close() // it may be closed already
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.made) {
		os.Remove(l.path)
	}
}

// Accept implements [net.Listener]: the peer's address says who it is.
func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return &accepted{conn, peerOf(conn)}, nil
}

type accepted struct {
	*net.UnixConn
	peer peer
}

// RemoteAddr implements [net.Conn].
func (a *accepted) RemoteAddr() net.Addr { return a.peer }

// peer is who has connected, by what the kernel says. A client's end of a Unix
// socket has no address of use otherwise.
type peer struct {
	uid uint32
	err error // it is not known
}

// Network implements [net.Addr].
func (p peer) Network() string { return "unix" }

// String implements [net.Addr].
func (p peer) String() string {
	if p.err != nil {
		return "unknown"
	}
	return fmt.Sprintf("uid %d", p.uid)
}

func peerOf(conn *net.UnixConn) peer {
	var p peer
	raw, err := conn.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
			if err != nil {
				p.err = err
				return
			}
			p.uid = cred.Uid
		})
	}
	if err != nil {
		p.err = err
	}
	return p
}
