package serve

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hallmark-ca/hallmark/ca/ledger"
	"github.com/hallmark-ca/hallmark/cmd/internal/state"
)

// openToOthers names what of the state directory is for its owner alone, and is
// not. What does not exist is another probe's to say.
func openToOthers(dir state.Dir) []finding {
	var found []finding
	for _, f := range []struct{ name, mode string }{{"", "700"}, {state.Keys, "700"}, {state.Keys + "/ledger.key", "600"}} {
		name := dir.Path(f.name)
		info, err := os.Stat(name)
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			found = append(found, finding{what: "state directory", err: fmt.Errorf("%s is open to others (mode %#o)", name, info.Mode().Perm()), mend: fmt.Sprintf("chmod %s %s", f.mode, name)})
		}
	}
	return found
}

// probeCheckpointKey opens the key of the ledger's checkpoints, and holds the
// ledger's end against them.
func probeCheckpointKey(dir state.Dir) []finding {
	const what = "ledger"
	_, err := dir.Signer()
	verifier, noVerifier := dir.Verifier()
	if err = errors.Join(err, noVerifier); err != nil {
		return []finding{{what: what, err: err, mend: "restore keys/ledger.key and keys/ledger.pub: without them nobody can tell a cut ledger"}}
	}
	found := []finding{{what: what, note: "checkpoint key opens"}}
	records, err := ledger.CheckEnd(dir.FS(), state.Ledger, verifier)
	switch {
	case errors.Is(err, ledger.ErrNewer):
		return append(found, finding{what: what, err: err, mend: "run the release that wrote it, or a newer one"})
	case err != nil:
		return append(found, finding{what: what, err: err, mend: "run hallmark ledger verify; keep the files as they are, and see docs/ledger.md, \"When verify finds something\""})
	}
	return append(found, finding{what: what, note: fmt.Sprintf("%d records, its end fits the checkpoints; hallmark ledger verify reads all of it", records)})
}

// startSegments are made at a start: the one that is written, and the next.
const startSegments = 2

// probeSpace holds the volume's free space against what a start needs, and
// against what the ledger may take.
func probeSpace(dir state.Dir, budget int64) finding {
	const what = "space"
	var volume unix.Statfs_t
	if err := unix.Statfs(string(dir), &volume); err != nil {
		return finding{what: what, err: fmt.Errorf("looking at the volume of %s: %w", dir, err), mend: "see that the volume is there"}
	}
	free := int64(min(volume.Bavail*uint64(volume.Bsize), 1<<62))
	used, ready, err := ledgerFiles(dir)
	if err != nil {
		return finding{what: what, err: err, mend: "let this account read the ledger's folder"}
	}
	return judgeSpace(dir, free, used, ready, budget)
}

// judgeSpace is for a ledger of so many bytes, of whose files for a start so many
// are there.
func judgeSpace(dir state.Dir, free, used int64, ready int, budget int64) finding {
	const what = "space"
	need := int64(startSegments-ready) * ledger.DefaultSegment
	switch {
	case free < need:
		return finding{what: what, err: fmt.Errorf("%s has %d MiB free, a start needs %d MiB for the ledger", dir, free>>20, need>>20), mend: "make room, or give the volume more"}
	case used+free < budget:
		return finding{what: what, warn: fmt.Sprintf("the ledger may take %d MiB (ledger.maxBytes), and %s has room for %d MiB: it is full before old records go", budget>>20, dir, (used+free)>>20), mend: "give the volume more, or write a smaller ledger.maxBytes"}
	}
	return finding{what: what, note: fmt.Sprintf("%d MiB free; the ledger takes %d of at most %d MiB", free>>20, used>>20, budget>>20)}
}

// ledgerFiles returns what the ledger takes, and how many of the files that a
// start makes are there.
func ledgerFiles(dir state.Dir) (used int64, ready int, err error) {
	entries, err := os.ReadDir(dir.Path(state.Ledger))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("looking at the ledger's files: %w", err)
	}
	segment, next := 0, 0
	for _, e := range entries {
		if info, err := e.Info(); err == nil { // one may have gone meanwhile
			used += info.Size()
		}
		switch {
		case strings.HasSuffix(e.Name(), ".seg"):
			segment = 1
		case e.Name() == "next":
			next = 1
		}
	}
	return used, segment + next, nil
}

// probeBundle tells whether the bundle can be replaced.
func probeBundle(file string) finding {
	const what = "bundle file"
	if err := writable(filepath.Dir(file)); err != nil {
		return finding{what: what, err: err, mend: "make the folder of bundle.file, and let the account that hallmark runs as write there"}
	}
	return finding{what: what, note: file + " can be replaced"}
}
