package serve

import (
	"fmt"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/kube"
	"github.com/hallmark-ca/hallmark/cmd/internal/config"
)

// proofParts is what finds out who is calling.
type proofParts struct {
	cluster   *kube.Cluster
	registrar *attest.Registrar
}

func buildProof(b *base, cfg *config.Config, gate attest.ImageGate) (*proofParts, error) {
	rest, err := kube.RESTConfig(cfg.Attest.Kubeconfig)
	if err != nil {
		return nil, kubeconfigError(err)
	}
	cluster, err := kube.New(kube.Config{
		ID: cfg.ClusterID, TrustDomain: cfg.TrustDomain, REST: rest,
		Audiences: cfg.Attest.Audiences, ServerAudience: cfg.Attest.UnsafeAPIServerAudience, ReviewCache: cfg.Attest.ReviewCache,
		Feed: b.feed, Registerer: b.metrics, Log: b.log.With("part", "attest"), Now: b.now,
	})
	if err != nil {
		return nil, kubeconfigError(err)
	}
	registrar, err := attest.NewRegistrar(attest.RegistrarConfig{
		Clusters: map[string]attest.Cluster{cfg.ClusterID: cluster}, Local: cfg.ClusterID, Gate: gate,
		MaxStaleness: cfg.Attest.MaxStaleness, SourceAddress: cfg.Attest.SourceAddress,
		Log: b.log.With("part", "attest"), Now: b.now,
	})
	if err != nil {
		return nil, fmt.Errorf("putting attestation together: %w", err)
	}
	return &proofParts{cluster, registrar}, nil
}
