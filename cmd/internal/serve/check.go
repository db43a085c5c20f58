package serve

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/hallmark-ca/hallmark/cmd/internal/config"
	"github.com/hallmark-ca/hallmark/cmd/internal/state"
)

// checkTime bounds all probes together.
const checkTime = 30 * time.Second

// finding is what one probe found.
type finding struct {
	what string // what was looked at
	note string // what is there, where nothing is wrong
	err  error  // what is wrong
	mend string
}

// Check builds the graph, probes what it rests on, writes a line for each thing
// looked at, and reports whether all is well. It changes nothing, and a server
// that runs on the same state does not notice.
func Check(ctx context.Context, cfg *config.Config, w io.Writer) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	b := newBase(state.Dir(cfg.State), newLog(io.Discard, slog.LevelError), true)
	found := []finding{{what: "configuration", note: "valid"}}
	g, err := build(ctx, b, cfg)
	defer g.close()
	if err != nil {
		found = append(found, finding{what: "parts", err: err, mend: "see what the line says"})
	}
	found = append(found, probe(ctx, g, cfg)...)
	ok := true
	for _, f := range found {
		var err error
		if f.err != nil {
			ok = false
			_, err = fmt.Fprintf(w, "✗ %s: %v\n    mend: %s\n", f.what, f.err, f.mend)
		} else {
			_, err = fmt.Fprintf(w, "✓ %s: %s\n", f.what, f.note)
		}
		if err != nil {
			return false, err
		}
	}
	return ok, nil
}
