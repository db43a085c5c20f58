package signing

import "context"

// NewTurns returns how turns are taken, n at once.
func NewTurns(n int) func(ctx context.Context, name string) (release func(), ok bool) {
	t := newTurns(n)
	return t.take
}
