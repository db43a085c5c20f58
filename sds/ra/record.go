package ra

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/ledger"
)

// refuse counts, records and logs one refusal.
func (r *RA) refuse(ctx context.Context, f refusalOf) *Refusal {
	if f.id == "" {
		f.id = newID()
	}
	r.metrics.refused(f.door, f.deny.Reason)
	known := !f.caller.Identity.IsZero()
	if known {
		r.record(f)
		if r.cfg.Refused != nil {
			r.cfg.Refused(f.door, f.caller, f.caller.Identity)
		}
	}
	r.log(ctx, f, known)
	return &Refusal{ID: f.id, Deny: f.deny, proven: f.proven, pod: f.caller.Pod}
}

// record writes the refusal of an authenticated caller to the ledger, which
// folds those that are alike.
func (r *RA) record(f refusalOf) {
	c := f.caller
	r.cfg.Refusals.Refuse(ledger.Refusal{
		ID: f.id, Time: r.cfg.Now().UTC(), Identity: c.Identity.String(),
		Cluster: c.Cluster, Namespace: c.Pod.Namespace, Pod: c.Pod.Name, PodUID: c.Pod.UID, Node: c.Node,
		Door: f.door, Reason: f.deny.Reason.String(), Object: attest.Escape(f.deny.Object), Detail: attest.Escape(f.deny.Detail),
	})
}

func (r *RA) log(ctx context.Context, f refusalOf, known bool) {
	level := slog.LevelInfo
	switch {
	case f.deny.Reason == attest.InternalError:
		level = slog.LevelError
	case known:
		level = slog.LevelWarn
	}
	if !r.cfg.Log.Enabled(ctx, level) {
		return
	}
	leftOut, ok := r.sampler.take(f.deny.Reason, known, r.cfg.Now())
	if !ok {
		return
	}
	attrs := make([]slog.Attr, 0, 12)
	attrs = append(attrs, slog.String("id", f.id), slog.String("door", f.door), slog.String("reason", f.deny.Reason.String()))
	if f.deny.Object != "" {
		attrs = append(attrs, slog.String("object", attest.Escape(f.deny.Object)))
	}
	if f.deny.Detail != "" {
		attrs = append(attrs, slog.String("detail", attest.Escape(f.deny.Detail)))
	}
	if known {
		attrs = append(attrs, slog.String("identity", f.caller.Identity.String()), slog.String("cluster", f.caller.Cluster), slog.String("pod", f.caller.Pod.String()), slog.String("podUID", f.caller.Pod.UID))
	}
	if f.peer.IsValid() {
		attrs = append(attrs, slog.String("peer", f.peer.String()))
	}
	if leftOut > 0 {
		attrs = append(attrs, slog.Uint64("leftOut", leftOut))
	}
	r.cfg.Log.LogAttrs(ctx, level, "refused", attrs...)
}

// How much of each reason is logged: a flood costs neither disk nor CPU, and the
// counter has it all.
const (
	sampleBurst = 20
	sampleEvery = time.Second
)

// sampler lets some refusals of each reason through to the log. What strangers
// do has budgets of its own, so that it hides nothing of what callers do. The
// zero value is ready.
type sampler struct {
	budgets [2][256]budget // by known caller, and reason
}

type budget struct {
	mu      sync.Mutex // guards all below
	spent   int
	since   time.Time
	leftOut uint64
}

// take tells whether to log, and how many like it were left out before.
func (s *sampler) take(reason attest.Reason, known bool, now time.Time) (leftOut uint64, ok bool) {
	b := &s.budgets[0][reason]
	if known {
		b = &s.budgets[1][reason]
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if back := int(now.Sub(b.since) / sampleEvery); back > 0 {
		b.spent, b.since = max(0, b.spent-back), now
	}
	if b.spent >= sampleBurst {
		b.leftOut++
		return 0, false
	}
	b.spent++
	leftOut, b.leftOut = b.leftOut, 0
	return leftOut, true
}
