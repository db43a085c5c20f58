package serve

import (
	"fmt"
	"time"

	"github.com/hallmark-ca/hallmark/ca/rotate"
	"github.com/hallmark-ca/hallmark/cmd/internal/admin"
	"github.com/hallmark-ca/hallmark/cmd/internal/config"
)

// buildAdmin makes the socket by which people steer this server. What it asks is
// looked up when it is asked.
func buildAdmin(b *base, cfg *config.Config, g *graph, rotation *rotate.Runner, serving *servingCertificate) (*admin.Server, error) {
	started := b.now()
	return admin.New(admin.Config{
		Socket: b.dir.Path(admin.SocketName), Rotation: rotation,
		Conditions: func() []admin.Condition { return adminConditions(g.conditions) },
		Facts:      func() admin.Facts { return facts(b, cfg, g, serving, started) },
		Log:        b.log.With("part", "admin"), Now: b.now,
	})
}

func adminConditions(conditions []condition) []admin.Condition {
	out := make([]admin.Condition, len(conditions))
	for i, c := range conditions {
		out[i] = admin.Condition{Name: c.name, Ready: true}
		if err := c.ready(); err != nil {
			out[i] = admin.Condition{Name: c.name, Text: err.Error()}
		}
	}
	return out
}

func facts(b *base, cfg *config.Config, g *graph, serving *servingCertificate, started time.Time) admin.Facts {
	f := admin.Facts{
		Version: b.version, TrustDomain: cfg.TrustDomain.String(), Cluster: cfg.ClusterID, Replica: cfg.ReplicaID,
		Started: started, ImageGate: cfg.Images.Issuance.String(),
		OutageTolerance: (cfg.Authority.LeafDefault / 2).Seconds(),
	}
	if snap := g.authority.authority.Current(); snap != nil {
		f.Issuing, f.IssuingUntil = snap.AuthorityID(), snap.Issuer().NotAfter
	}
	if cert := serving.current.Load(); cert != nil {
		f.ServingUntil = cert.Leaf.NotAfter
	}
	if age, ok := g.proof.cluster.Age(); ok {
		seconds := age.Seconds()
		f.ViewAge = &seconds
	}
	if g.authority.ledger != nil {
		usage := g.authority.ledger.Usage()
		f.LedgerUsage = &usage
	}
	if all, behind, first := g.publish.behind(); behind > 0 {
		f.More = append(f.More, admin.Line{Name: "bundle places", Text: fmt.Sprintf("%d of %d do not hold the newest: %s", behind, all, first)})
	}
	if n := len(g.images.problems()); n > 0 {
		f.More = append(f.More, admin.Line{Name: "image policies", Text: fmt.Sprintf("%d problems: hallmark serve --check lists them", n), Bad: true})
	}
	return f
}
