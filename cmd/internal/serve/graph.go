package serve

import (
	"context"
	"slices"

	"github.com/hallmark-ca/hallmark/cmd/internal/config"
)

// graph is the server, put together and not running.
type graph struct {
	base      *base
	authority *authorityParts
	images    *imageParts
	proof     *proofParts
	doors     []unit // stopped first
	workers   []unit
	ledger    []unit // stopped last
}

// build puts the graph together. What was built is returned with an error, too,
// to be closed.
func build(ctx context.Context, b *base, cfg *config.Config) (*graph, error) {
	g := &graph{base: b}
	var err error
	if g.authority, err = buildAuthority(ctx, b, cfg); err != nil {
		return g, err
	}
	if g.images, err = buildImages(b, cfg); err != nil {
		return g, err
	}
	if g.proof, err = buildProof(b, cfg, g.images.gate); err != nil {
		return g, err
	}
	serving, err := newServingCertificate(b, g.authority.authority, cfg.Mesh)
	if err != nil {
		return g, err
	}
	mesh, err := buildDoors(b, cfg, g.authority, g.proof.registrar, serving)
	if err != nil {
		return g, err
	}
	publish, err := buildPublish(b, cfg, g.authority.authority)
	if err != nil {
		return g, err
	}
	conditions := []condition{{"issuing CA", g.authority.replica.Ready}, {"serving certificate", serving.ready}, {"view of the cluster", g.proof.cluster.Ready}}
	if !b.checking {
		g.ledger = []unit{{"ledger", g.authority.ledger.Run}}
		conditions = append(conditions, condition{"ledger", g.authority.ledger.Ready})
	}
	g.workers = append(g.images.units(),
		unit{"issuing CA", g.authority.replica.Run}, unit{"serving certificate", serving.run}, unit{"bundle file", publish.run},
		unit{"view of the cluster", g.proof.cluster.Run}, unit{"proxies", mesh.proxies.Run})
	g.doors = []unit{
		{"mesh port", mesh.run}, {"streams of secrets", mesh.streams.Run}, {"gRPC health", mesh.health(conditions)},
		{"metrics", buildAdmin(b, cfg, conditions).run},
	}
	return g, nil
}

// close gives locks back, the last taken first.
func (g *graph) close() {
	if g.authority == nil {
		return
	}
	for _, c := range slices.Backward(g.authority.close) {
		if err := c.Close(); err != nil {
			g.base.log.Error("closing failed", "error", err)
		}
	}
}
