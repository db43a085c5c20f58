package serve

import "context"

// remark says what is odd about the state, and does not keep it from serving.
func (g *graph) remark(ctx context.Context) {
	if known, err := g.authority.store.Load(ctx); err == nil && g.authority.ledger.Founded() && known.Number > 1 {
		g.base.log.Error("the ledger is new, and the journal is not: what was issued before is on no record here", "part", "ledger", "journalRecords", known.Number,
			"mend", "if it was removed or lost: stop the server, put ledger/ back from the newest copy of the state directory, and find out who had access to the volume")
	}
	for _, f := range openToOthers(g.base.dir) {
		g.base.log.Error("the state directory is open to others", "error", f.err, "mend", f.mend)
	}
}
