package serve

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/ledger"
	"github.com/hallmark-ca/hallmark/cmd/internal/config"
	"github.com/hallmark-ca/hallmark/cmd/internal/state"
)

// Remark logs what is odd about a state directory.
func Remark(ctx context.Context, dir string, store journal.Store, l *ledger.Ledger, w io.Writer) {
	b := testBase(time.Now)
	b.dir, b.log = state.Dir(dir), newLog(w, slog.LevelInfo)
	(&graph{base: b, authority: &authorityParts{store: store, ledger: l}}).remark(ctx)
}

// JudgeSpace is the finding for a volume, as one of ok, warning and wrong.
func JudgeSpace(free, used int64, ready int, budget int64) string {
	switch f := judgeSpace("/state", free, used, ready, budget); {
	case f.err != nil:
		return "wrong"
	case f.warn != "":
		return "warning"
	}
	return "ok"
}

// BuildImages makes what decides about images, and logs to w.
func BuildImages(cfg *config.Config, w io.Writer) error {
	b := testBase(time.Now)
	b.dir, b.log = state.Dir(cfg.State), newLog(w, slog.LevelInfo)
	_, err := buildImages(b, cfg)
	return err
}
