package mesh

import (
	"context"
	"time"

	"github.com/hallmark-ca/hallmark/test/bench/cluster"
	"github.com/hallmark-ca/hallmark/test/bench/pods"
)

// Token asks the API server for a token bound to the pod, of an hour.
func (p *Pod) Token(ctx context.Context) (string, error) {
	return pods.Token(ctx, p.mesh.Cluster.Client(), p.Pod, pods.Audience, time.Hour)
}

// Claims are those of a token that the API server would give to the pod now.
func (p *Pod) Claims(life time.Duration) cluster.Claims {
	return cluster.ClaimsOf(p.Pod, p.Account, p.mesh.Node, pods.Audience, time.Now(), life)
}

// ShortToken is a token of any life: TokenRequest gives none of less than ten
// minutes. TokenReview takes it for one of the API server's own.
func (p *Pod) ShortToken(life time.Duration) (string, error) {
	return p.mesh.Cluster.Tokens.Sign(p.Claims(life))
}
