package serve

import (
	"context"
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
	warn string // what works, and may not be what was meant
	err  error  // what is wrong
	mend string
}

// Finding is what [Check] found of one thing.
type Finding struct {
	What  string `json:"what"`
	State string `json:"state"` // ok, warning or wrong
	Text  string `json:"text"`
	Mend  string `json:"mend,omitempty"`
}

// Check builds the graph, probes what it rests on, and returns a finding for
// each thing looked at. It changes nothing, and a server that runs on the same
// state does not notice.
func Check(ctx context.Context, cfg *config.Config) []Finding {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	b := newBase(state.Dir(cfg.State), newLog(io.Discard, slog.LevelError), true)
	found := []finding{{what: "configuration", note: "valid"}}
	g, err := build(ctx, b, cfg)
	defer g.close()
	if err != nil {
		found = append(found, partFinding(err))
	}
	found = append(found, probe(ctx, g, cfg)...)
	out := make([]Finding, len(found))
	for i, f := range found {
		switch {
		case f.err != nil:
			out[i] = Finding{f.what, "wrong", f.err.Error(), f.mend}
		case f.warn != "":
			out[i] = Finding{f.what, "warning", f.warn, f.mend}
		default:
			out[i] = Finding{f.what, "ok", f.note, ""}
		}
	}
	return out
}
