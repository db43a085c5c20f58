package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hallmark-ca/hallmark/test/bench/hallmark"
)

// ledger shows the record of everything above, and holds it against what was
// seen.
func (d *demo) ledger(ctx context.Context) error {
	var entries []hallmark.Entry
	// Refusals are written within a second of theirs.
	err := d.await(ctx, func() error {
		var err error
		entries, err = d.mesh.Hallmark.Query(ctx)
		if err != nil {
			return err
		}
		return d.complete(ctx, entries)
	})
	if err != nil {
		return err
	}
	text, err := d.mesh.Hallmark.Run(ctx, "ledger", "query")
	if err != nil {
		return err
	}
	d.screen.saw("all of it is on record (hallmark ledger query):")
	d.screen.quote(string(text))
	return nil
}

// complete tells what is missing in the record.
func (d *demo) complete(ctx context.Context, entries []hallmark.Entry) error {
	for _, name := range []string{"client", "server"} {
		id, err := d.envoys[name].Identity(ctx)
		if err != nil {
			return err
		}
		if !issued(entries, id.Serial(), d.pods[name].Identity(), string(d.pods[name].UID)) {
			return fmt.Errorf("the certificate of %s, serial %s, is not on record", name, id.Serial())
		}
	}
	for _, name := range []string{"client", "intruder"} {
		if !refused(entries, "ImageUnsigned", string(d.pods[name].UID)) {
			return fmt.Errorf("the refusal of %s is not on record", name)
		}
	}
	for _, e := range entries {
		if e.Issuance != nil && e.Issuance.PodUID == string(d.pods["intruder"].UID) {
			return errors.New("a certificate of the intruder is on record")
		}
	}
	return nil
}

func issued(entries []hallmark.Entry, serial, identity, uid string) bool {
	for _, e := range entries {
		if i := e.Issuance; i != nil && i.Serial == serial && i.Identity == identity && i.PodUID == uid && e.Status == "issued" {
			return true
		}
	}
	return false
}

func refused(entries []hallmark.Entry, reason, uid string) bool {
	for _, e := range entries {
		if r := e.Refusal; r != nil && r.Reason == reason && r.PodUID == uid && e.Status == "refused" {
			return true
		}
	}
	return false
}

func (d *demo) verify(ctx context.Context) error {
	report, err := d.mesh.Hallmark.Verify(ctx)
	if err != nil {
		return err
	}
	if report.Issued < 2 || len(report.Findings) > 0 {
		return fmt.Errorf("hallmark ledger verify: %+v", report)
	}
	d.screen.saw("hallmark ledger verify: %d records, %d certificates, nothing missing, nothing changed", report.Records, report.Issued)
	return nil
}

// await asks ready until it returns nil or ctx ends.
func (d *demo) await(ctx context.Context, ready func() error) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

// keep waits for Ctrl-C.
func (d *demo) keep(ctx context.Context) error {
	if err := d.instruct(); err != nil {
		d.screen.failed("writing what to try", err)
		return err
	}
	<-ctx.Done()
	d.screen.say("")
	return nil
}

// instruct says what to try while everything runs.
func (d *demo) instruct() error {
	h := d.mesh.Hallmark
	key := filepath.Join(d.dir, "signing.key")
	if err := os.WriteFile(key, d.mesh.Key.PrivatePEM(), 0o600); err != nil {
		return fmt.Errorf("writing the demo's key: %w", err)
	}
	program := filepath.Join(d.dir, "hallmark-cli")
	if err := os.Symlink(h.Program(), program); err != nil {
		return fmt.Errorf("linking the program: %w", err)
	}
	intruder := d.images["intruder"]
	d.screen.say(`
Everything runs until Ctrl-C. Things to try, in another terminal:

  curl -s http://%s/                         # client → server, over mutual TLS
  curl -s http://%s/certs                    # what the client's Envoy holds
  curl -s http://%s/metrics | grep hallmark_ # what Hallmark counts
  %s ledger query --state %s
  %s reasons ImageUnsigned
  tail -f %s

  # Sign the intruder's image (in test/): its Envoy gets an identity within half a minute.
  go run ./sign/cmd sign %s %s
  curl -s http://%s/certs

  # The cluster, with kubectl:
  export KUBECONFIG=%s
  kubectl -n demo get pods
  kubectl -n demo delete pod server --force  # its streams end, its identity is not renewed`,
		d.envoys["client"].Outbound(), d.envoys["client"].AdminAddr(), h.MetricsAddr(),
		program, h.State(), program, h.LogFile(),
		key, intruder, d.envoys["intruder"].AdminAddr(), d.mesh.Cluster.Kubeconfig())
	return nil
}
