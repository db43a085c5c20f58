package admin

// Bounds, for tests.
const (
	MaxBody     = maxBody
	MaxRequests = maxRequests
	MaxPath     = maxPath
)

// Listen makes a socket as Run does.
var Listen = listen

// Remove takes it away as Run does.
func (l *listener) Remove() { l.remove() }

// Read reads the body of an order.
var Read = read
