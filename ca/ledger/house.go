package ledger

import (
	"fmt"
	"math"
	"path"
	"time"
)

// Shares of the budget: from the first on, the log and the usage metric warn;
// from the second on, the oldest segments without live leaves go early; from the
// third on, this replica issues nothing.
const (
	shareWarn  = 0.80
	shareEvict = 0.90
	shareFull  = 0.95
)

// keepHouse does what the writer does beside writing.
func (l *Ledger) keepHouse() {
	if l.look() != nil {
		return // what is written now is written beside the ledger
	}
	l.refusals.flush(l, false)
	l.evict()
	if l.w.broken != nil && l.w.full == nil {
		l.mend()
	}
	l.prepareNext()
	l.stamp(false)
}

// look tells whether the file that is written is still the one that readers, and
// the next start, find under its name. One that was removed takes every write,
// and none of them is ever read. Where it is put back, the ledger goes on.
func (l *Ledger) look() error {
	w := &l.w
	name := path.Join(l.cfg.Dir, segmentName(w.number))
	same, err := l.cfg.FS.Same(name, w.file)
	switch {
	case err != nil:
		err = fmt.Errorf("looking at %s: %w", name, err)
	case !same:
		err = fmt.Errorf("%s was removed or replaced while it was written", name)
	}
	if (err == nil) == (w.gone == nil) {
		return err
	}
	w.gone = err
	l.judge()
	if err == nil {
		l.cfg.Log.Info("the ledger is where it was again", "segment", w.number)
		return nil
	}
	l.cfg.Log.Error("the ledger was taken away under the running server; nothing is issued until it is back", "error", err,
		"mend", "move the very files back, and it goes on by itself; if they are gone: stop the server, put back the newest copy of the state directory, start it, and find out who had access to the volume")
	return err
}

// mend goes on in a new segment, from the last commit that was reported
// durable, once a file can be written again.
func (l *Ledger) mend() {
	if err := l.begin(l.w.number + 1); err != nil {
		l.w.broken = fmt.Errorf("beginning a new segment: %w", err)
		l.judge()
		return
	}
	l.judge()
	l.cfg.Log.Info("the ledger can be written again", "segment", l.w.number)
	l.rouse() // outcomes may have waited for it
}

func (l *Ledger) usage() float64 {
	bytes := float64(int64(len(l.w.sealed)+2) * l.cfg.Segment) // current and next
	l.m.bytes.Set(bytes)
	ratio := bytes / float64(l.cfg.MaxBytes)
	l.m.usage.Set(ratio)
	l.used.Store(math.Float64bits(ratio))
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
		if err := l.remove(oldest.number); err != nil {
			l.cfg.Log.Error("removing an old ledger segment failed", "segment", oldest.number, "error", err)
			break
		}
		l.cfg.Log.Info("removed an old ledger segment", "segment", oldest.number, "age", age.Round(time.Second).String())
		l.w.sealed = l.w.sealed[1:]
	}
	l.checkBudget()
}

// remove makes each removal durable before the next: a cut must not leave a
// gap, which would read as a segment that somebody took away.
func (l *Ledger) remove(n uint64) error {
	for _, name := range []string{indexName(n), segmentName(n)} {
		if err := removeIfThere(l.cfg.FS, path.Join(l.cfg.Dir, name)); err != nil {
			return err
		}
	}
	return l.cfg.FS.SyncDir(l.cfg.Dir)
}

func (l *Ledger) checkBudget() {
	ratio := l.usage()
	if warn := ratio >= shareWarn; warn != l.w.warned {
		l.w.warned = warn
		if warn {
			l.cfg.Log.Warn("ledger.maxBytes is nearly used up", "percent", int(100*ratio))
		}
	}
	if full := ratio >= shareFull; full == (l.w.full != nil) {
		return
	}
	l.w.full = nil
	if ratio >= shareFull {
		l.w.full = fmt.Errorf("%.0f %% of ledger.maxBytes are used, and every segment may hold live leaves: raise ledger.maxBytes", 100*ratio)
		l.cfg.Log.Error("the ledger's budget is used up; nothing is issued until there is room", "error", l.w.full)
	} else {
		l.cfg.Log.Info("the ledger's budget has room again")
	}
	l.judge()
}
