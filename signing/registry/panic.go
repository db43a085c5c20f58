package registry

import (
	"fmt"
	"runtime/debug"

	"github.com/hallmark-ca/hallmark/attest"
)

// guarded turns a panic over what a registry sent into an error. What runs here
// runs in goroutines of its own, which no caller's recover reaches: the process,
// with the keys that it holds in memory, would end.
func (c *Client) guarded(ask func() error) func() error {
	return func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %s", attest.Escape(fmt.Sprint(p)))
				c.cfg.Log.Error("reading what a registry sent failed", "error", err, "stack", string(debug.Stack()))
			}
		}()
		return ask()
	}
}

// remarked is guarded for what may be missing: a panic is a remark about source,
// and the evidence is incomplete, for what was attached there is not known.
func (c *collection) remarked(source string, look func()) func() error {
	return func() error {
		if err := c.client.guarded(func() error { look(); return nil })(); err != nil {
			c.skip(source, err)
		}
		return nil
	}
}
