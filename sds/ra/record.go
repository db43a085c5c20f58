package ra

import (
	"context"
	"log/slog"

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
