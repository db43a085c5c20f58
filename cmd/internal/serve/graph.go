package serve

import (
	"context"
	"slices"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/cmd/internal/config"
)

// graph is the server, put together and not running.
type graph struct {
	base       *base
	authority  *authorityParts
	images     *imageParts
	proof      *proofParts
	publish    *publishParts
	conditions []condition
	doors      []unit // stopped first
	workers    []unit
	ledger     []unit // stopped last
}

// build puts the graph together. What was built is returned with an error, too,
// to be closed.
func build(ctx context.Context, b *base, cfg *config.Config) (*graph, error) {
	g := &graph{base: b}
	// Nothing asks the census before all is built.
	consumers, err := buildCensus(b, func(cluster string, pod attest.PodRef, known time.Time) bool {
		return cluster == cfg.ClusterID && g.proof.cluster.Gone(pod, known)
	})
	if err != nil {
		return g, err
	}
	if g.authority, err = buildAuthority(ctx, b, cfg, consumers); err != nil {
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
	if g.publish, err = buildPublish(b, cfg, g.authority.authority); err != nil {
		return g, err
	}
	rotation, err := buildRotation(b, cfg, g.authority, g.publish, &rehearsal{
		replica: g.authority.replica, serving: serving, server: mesh.server, now: b.now, log: b.log.With("part", "rotation"),
	})
	if err != nil {
		return g, err
	}
	g.conditions = []condition{{"issuing CA", g.authority.replica.Ready}, {"serving certificate", serving.ready}, {"view of the cluster", g.proof.cluster.Ready}}
	socket, err := buildAdmin(b, cfg, g, rotation, serving)
	if err != nil {
		return g, err
	}
	if !b.checking {
		g.ledger = []unit{{"ledger", g.authority.ledger.Run}}
		g.conditions = append(g.conditions, condition{"ledger", g.authority.ledger.Ready})
		g.workers = append(g.workers, unit{"census", restoreCensus(b, consumers, g.authority.ledger)})
	}
	g.workers = append(g.workers, g.images.units()...)
	g.workers = append(g.workers, g.publish.workers()...)
	g.workers = append(g.workers,
		unit{"issuing CA", g.authority.replica.Run}, unit{"serving certificate", serving.run},
		unit{"view of the cluster", g.proof.cluster.Run}, unit{"proxies", mesh.proxies.Run}, unit{"rotation", rotation.Run})
	g.doors = []unit{
		{"mesh port", mesh.run}, {"streams of secrets", mesh.streams.Run}, {"gRPC health", mesh.health(g.conditions)},
		{"metrics", buildMetrics(b, cfg, g.conditions).run}, {"admin socket", socket.Run},
	}
	g.doors = append(g.doors, g.publish.doors()...)
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
