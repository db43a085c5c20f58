// Package port hands out TCP ports of 127.0.0.1 that stay the caller's own
// while nothing listens on them, so that a server can be stopped and started
// again at the same address.
//
// A [Port] holds a bound socket that does not listen. Whoever listens there
// sets SO_REUSEPORT as it does ([Port.Listen] for servers in this process,
// --permit-port-sharing of kube-apiserver, --socket-reuse-port of etcd, Envoy's
// listeners of themselves) or SO_REUSEADDR, as every Go server does on Linux.
// Connections to a port that only its holder has are refused, as to any closed
// port.
package port

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Port is a reserved TCP port of 127.0.0.1.
type Port struct {
	fd     int
	number int
}

// Reserve has the kernel choose a free port and holds it until Close.
func Reserve() (*Port, error) {
	// A child that inherited the socket would hold the port beyond Close.
	syscall.ForkLock.RLock()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, fmt.Errorf("reserving a port: %w", err)
	}
	p := &Port{fd: fd}
	if err := p.bind(); err != nil {
		p.Close()
		return nil, fmt.Errorf("reserving a port: %w", err)
	}
	return p, nil
}

func (p *Port) bind() error {
	for _, option := range []int{unix.SO_REUSEPORT, unix.SO_REUSEADDR} {
		if err := unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, option, 1); err != nil {
			return err
		}
	}
	if err := unix.Bind(p.fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	sa, err := unix.Getsockname(p.fd)
	if err != nil {
		return err
	}
	p.number = sa.(*unix.SockaddrInet4).Port
	return nil
}

// Number is the port, as in "127.0.0.1:number".
func (p *Port) Number() int { return p.number }

// Addr is "127.0.0.1:number".
func (p *Port) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.number)) }

// Listen listens on the port in this process.
func (p *Port) Listen() (net.Listener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var serr error
		if err := c.Control(func(fd uintptr) {
			serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}); err != nil {
			return err
		}
		return serr
	}}
	return lc.Listen(context.Background(), "tcp4", p.Addr())
}

// Close gives the port back to the kernel.
func (p *Port) Close() {
	_ = unix.Close(p.fd) // it fails only for a port that was given back before
}

// Free returns the address of a port that was free a moment ago, for a server
// that cannot share one: another process may take it first.
func Free() (string, error) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("finding a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}
