// Command demo shows Hallmark at work with real systems: an API server, an OCI
// registry and Envoys, all on 127.0.0.1. It ends with 0 only if it has observed
// everything that it shows.
//
//	make demo            # from the root of the repository
//	make demo KEEP=1     # leaves it running, to poke at
//
// It does what a user could: it runs the program, writes its files, and reads
// Envoy's admin interface, Hallmark's metrics and its ledger.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hallmark-ca/hallmark/test/tools"
)

func main() {
	keep := flag.Bool("keep", false, "leave everything running until Ctrl-C, and say how to poke at it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *keep)
	stop()
	if err != nil {
		os.Exit(1)
	}
}

// within bounds the demo: a machine that is slower than this shows nothing.
const within = 3 * time.Minute

// run shows everything. It has said what went wrong when it returns an error.
func run(ctx context.Context, keep bool) error {
	s := newScreen(os.Stdout)
	dir, err := os.MkdirTemp("", "hallmark-demo-")
	if err != nil {
		s.failed("making a directory", err)
		return err
	}
	d := &demo{screen: s, dir: dir, life: ctx}
	start := time.Now()
	err = d.play(ctx)
	if err == nil {
		s.say("\n%d facts observed in %s.", s.facts, time.Since(start).Round(100*time.Millisecond))
		if keep {
			err = d.keep(ctx)
		}
	}
	d.close()
	if err != nil {
		var missing *tools.MissingError
		if errors.As(err, &missing) { // nobody has said anything
			return errors.Join(err, os.RemoveAll(dir))
		}
		s.say("What everybody said is in %s", dir)
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		s.failed("cleaning up", err)
		return err
	}
	s.say("Nothing is left running. Read on: README.md, docs/, deploy/envoy/README.md, SECURITY.md")
	return nil
}

// play runs the acts in order until one fails.
func (d *demo) play(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("the demo took longer than %s", within))
	defer cancel()
	for _, act := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"setting the scene", d.scene},
		{"making three pods", d.makePods},
		{"starting hallmark", d.serve},
		{"starting Envoys", d.startEnvoys},
		{"getting identities", d.identities},
		{"talking mutual TLS", d.talk},
		{"refusing the intruder", d.intruder},
		{"swapping an image on a live pod", d.swap},
		{"reading the ledger", d.ledger},
		{"verifying the ledger", d.verify},
	} {
		d.screen.doing(act.what)
		if err := act.do(ctx); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = fmt.Errorf("%w: %w", cause, err)
			}
			d.screen.failed(act.what, err)
			return err
		}
	}
	return nil
}
