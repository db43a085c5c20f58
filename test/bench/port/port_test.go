package port_test

import (
	"net"
	"testing"

	"github.com/hallmark-ca/hallmark/test/bench/port"
)

// A server comes back at the address of the one before it, and nobody else gets
// the port meanwhile.
func TestServersComeAndGo(t *testing.T) {
	t.Parallel()
	p, err := port.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	plain := func() (net.Listener, error) { return net.Listen("tcp4", p.Addr()) }
	for i, listen := range []func() (net.Listener, error){plain, p.Listen, plain} {
		if c, err := net.Dial("tcp4", p.Addr()); err == nil {
			c.Close()
			t.Fatalf("server %d: somebody answers before it", i)
		}
		l, err := listen()
		if err != nil {
			t.Fatalf("server %d: %v", i, err)
		}
		c, err := net.Dial("tcp4", p.Addr())
		if err != nil {
			t.Fatalf("server %d: %v", i, err)
		}
		c.Close()
		if other, err := plain(); err == nil {
			other.Close()
			t.Errorf("server %d: a second one listens at the same address", i)
		}
		l.Close()
	}
	for range 200 {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if l.Addr().String() == p.Addr() {
			t.Fatal("the kernel gave a reserved port away")
		}
	}
}
