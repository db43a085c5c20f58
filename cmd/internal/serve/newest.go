package serve

import (
	"net"
	"slices"
	"sync"
)

// Connections to the plain HTTP port that are open at once.
const (
	metricsConnections  = 256
	metricsOfOneAddress = 32
)

// newest is a listener that bounds the connections that are open, and closes the
// oldest for one too many: kubelet's probes come as new connections, and a port
// that made them wait behind others would have it restart this process, which
// loses the issuing CA.
type newest struct {
	net.Listener
	most, ofOne int

	mu   sync.Mutex // guards open
	open []*counted // oldest first
}

// counted is one open connection.
type counted struct {
	net.Conn
	from string // the address without the port
	in   *newest
}

func newestFirst(l net.Listener, most, ofOne int) net.Listener {
	return &newest{Listener: l, most: most, ofOne: ofOne}
}

// Accept implements net.Listener.
func (n *newest) Accept() (net.Conn, error) {
	conn, err := n.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &counted{Conn: conn, from: conn.RemoteAddr().String(), in: n}
	if host, _, err := net.SplitHostPort(c.from); err == nil {
		c.from = host
	}
	if old := n.admit(c); old != nil {
		old.Conn.Close() // whoever serves it closes it once more, to no effect
	}
	return c, nil
}

// admit counts c, and returns what has to go for it.
func (n *newest) admit(c *counted) *counted {
	n.mu.Lock()
	defer n.mu.Unlock()
	ofOne, oldest := 0, -1 // of c's address
	for i, o := range n.open {
		if o.from != c.from {
			continue
		}
		if ofOne++; oldest < 0 {
			oldest = i
		}
	}
	if ofOne < n.ofOne {
		oldest = -1
		if len(n.open) >= n.most {
			oldest = 0
		}
	}
	var old *counted
	if oldest >= 0 {
		old = n.open[oldest]
		n.open = slices.Delete(n.open, oldest, oldest+1)
	}
	n.open = append(n.open, c)
	return old
}

// Close implements net.Conn.
func (c *counted) Close() error {
	c.in.mu.Lock()
	if i := slices.Index(c.in.open, c); i >= 0 {
		c.in.open = slices.Delete(c.in.open, i, i+1)
	}
	c.in.mu.Unlock()
	return c.Conn.Close()
}
