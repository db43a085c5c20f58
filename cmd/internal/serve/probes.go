package serve

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/hallmark-ca/hallmark/ca/durable"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/replica"
	"github.com/hallmark-ca/hallmark/cmd/internal/config"
	"github.com/hallmark-ca/hallmark/cmd/internal/state"
)

// probe looks at everything that the graph rests on.
func probe(ctx context.Context, g *graph, cfg *config.Config) []finding {
	dir := state.Dir(cfg.State)
	running, findings := probeState(dir)
	findings = append(findings, probeRoot(ctx, g, dir, cfg)...)
	findings = append(findings, probeCheckpointKey(dir)...)
	findings = append(findings, probeSpace(dir, cfg.Ledger.MaxBytes), probeBundle(cfg.Bundle.File))
	findings = append(findings, probeCluster(ctx, g)...)
	if g.images != nil {
		findings = append(findings, g.images.findings(cfg)...)
	}
	if g.publish != nil {
		findings = append(findings, g.publish.findings(ctx, running)...)
	}
	if running {
		return append(findings, finding{what: "listeners", note: "in use by the server that runs on this state"})
	}
	return append(findings, probeListen(ctx, "mesh.listen", cfg.Mesh.Listen), probeListen(ctx, "metrics.listen", cfg.Metrics))
}

// probeState tells whether the state directory can be written, and whether a
// server runs on it.
func probeState(dir state.Dir) (running bool, found []finding) {
	const what = "state directory"
	if _, err := os.Stat(string(dir)); err != nil {
		return false, []finding{{what: what, err: err, mend: "run hallmark init"}}
	}
	found = append(found, openToOthers(dir)...)
	for _, name := range []string{state.Journal, state.Ledger, state.Evidence} {
		err := writable(dir.Path(name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			found = append(found, finding{what: what, err: fmt.Errorf("there is no %s", dir.Path(name)), mend: "put it back from the newest copy; if there is none, a start makes it, empty"})
		case err != nil:
			found = append(found, finding{what: what, err: err, mend: "give the account that hallmark runs as the folder, and the volume space"})
		}
	}
	lock, err := dir.FS().Lock(state.Journal + "/lock")
	if errors.Is(err, durable.ErrLocked) {
		running = true
	} else if err == nil {
		lock.Close()
	}
	if len(found) == 0 {
		note := "writable"
		if running {
			note += ", a server runs on it"
		}
		found = append(found, finding{what: what, note: note})
	}
	return running, found
}

func writable(folder string) error {
	f, err := os.CreateTemp(folder, ".check-*")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// probeRoot replays the journal and opens the root's key.
func probeRoot(ctx context.Context, g *graph, dir state.Dir, cfg *config.Config) []finding {
	current, err := journal.ReadFile(dir.FS(), state.Journal)
	if err != nil {
		mend := "restore the newest copy of the state directory; hallmark init does not mend a journal"
		if errors.Is(err, journal.ErrNoJournal) {
			mend = replica.Mend(err)
		}
		return []finding{{what: "journal", err: err, mend: mend}}
	}
	if current.TrustDomain != cfg.TrustDomain.String() {
		return []finding{{what: "journal", err: fmt.Errorf("it is of trust domain %q", current.TrustDomain), mend: fmt.Sprintf("write trustDomain: %s, or name another state directory", current.TrustDomain)}}
	}
	found := []finding{{what: "journal", note: fmt.Sprintf("%d records, %d roots, verified", current.Number, len(current.Roots))}}
	if err := journal.CheckMemo(dir.FS(), state.Seen, current); err != nil {
		mend := fmt.Sprintf("see that %s is a file that this account can read and replace; if it is garbled, and the journal is surely the newest, remove it: it is made again", dir.Path(state.Seen))
		if errors.Is(err, journal.ErrRolledBack) {
			mend = replica.Mend(err)
		}
		found = []finding{{what: "journal", err: err, mend: mend}}
	}
	root, ok := current.ActiveRoot()
	if !ok {
		return append(found, finding{what: "root", err: errors.New("none is active"), mend: "restore the journal"})
	}
	cert, err := x509.ParseCertificate(root.Certificate)
	if err == nil && g.authority != nil && g.authority.keys != nil {
		_, err = g.authority.keys.Open(ctx, root.KeyURI, cert)
	}
	if err != nil {
		return append(found, finding{what: "root", err: err, mend: replica.MendKey(root.KeyURI)})
	}
	left := time.Until(cert.NotAfter)
	if left < 2*cfg.Authority.IssuingLifetime {
		return append(found, finding{what: "root", err: fmt.Errorf("it ends at %s", cert.NotAfter.Format(time.RFC3339)), mend: "found a new root before then"})
	}
	return append(found, finding{what: "root", note: fmt.Sprintf("%s opens, until %s", cert.Subject, cert.NotAfter.Format(time.DateOnly))})
}

// probeCluster asks the Kubernetes API whether it answers, and permits what
// serving needs.
func probeCluster(ctx context.Context, g *graph) []finding {
	if g.proof == nil {
		return nil // why is a finding already
	}
	var found []finding
	for _, f := range g.proof.cluster.Probe(ctx) {
		found = append(found, finding{what: f.What, note: f.Note, err: f.Err, mend: f.Mend})
	}
	return found
}

func probeListen(ctx context.Context, what, address string) finding {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return finding{what: what, err: fmt.Errorf("%s is in use by another process", address), mend: "stop it, or write another address"}
	case err != nil:
		return finding{what: what, err: err, mend: "write an address of this host, and a port that this account may use"}
	}
	listener.Close()
	return finding{what: what, note: address + " is free"}
}
