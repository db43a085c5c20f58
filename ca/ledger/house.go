package ledger

import (
	"fmt"
	"path"
	"time"
)

// Shares of the budget: from the second on, the oldest segments without live
// leaves go early; from the third on, this replica issues nothing.
const (
	shareEvict = 0.90
	shareFull  = 0.95
)

// keepHouse does what the writer does beside writing.
func (l *Ledger) keepHouse() {
	l.refusals.flush(l, false)
	if l.state.Load() != nil {
		l.mend()
	}
	l.prepareNext()
	l.evict()
	l.stamp(false)
}

// mend goes on in a new segment, from the last commit that was reported
// durable, once a file can be written again.
func (l *Ledger) mend() {
	if l.usage() >= shareFull {
		return
	}
	if err := l.begin(l.w.number + 1); err != nil {
		l.unwritable(fmt.Errorf("beginning a new segment: %w", err))
		return
	}
	l.unwritable(nil)
	l.cfg.Log.Info("the ledger can be written again", "segment", l.w.number)
}

func (l *Ledger) usage() float64 {
	bytes := float64(int64(len(l.w.sealed)+2) * l.cfg.Segment) // current and next
	l.m.bytes.Set(bytes)
	ratio := bytes / float64(l.cfg.MaxBytes)
	l.m.usage.Set(ratio)
	return ratio
}

// evict removes sealed segments that are past retention, and early ones where
// the budget asks for it: never one whose leaves may live.
func (l *Ledger) evict() {
	now := l.cfg.Now()
	for len(l.w.sealed) > 0 {
		oldest := l.w.sealed[0]
		age := now.Sub(oldest.last)
		if age <= l.cfg.MaxLeaf || (age <= l.cfg.Retention && l.usage() < shareEvict) {
			break
		}
		for _, name := range []string{segmentName(oldest.number), indexName(oldest.number)} {
			if err := removeIfThere(l.cfg.FS, path.Join(l.cfg.Dir, name)); err != nil {
				l.cfg.Log.Error("removing an old ledger segment failed", "segment", oldest.number, "error", err)
				return
			}
		}
		l.cfg.Log.Info("removed an old ledger segment", "segment", oldest.number, "age", age.Round(time.Hour).String())
		l.w.sealed = l.w.sealed[1:]
	}
	if ratio := l.usage(); ratio >= shareFull && l.state.Load() == nil {
		l.unwritable(fmt.Errorf("%.0f %% of ledger.maxBytes are used, and every segment may hold live leaves: raise ledger.maxBytes", 100*ratio))
	}
}
