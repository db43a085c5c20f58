package config

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
)

type attestFile struct {
	// The kubeconfig of the Kubernetes API; empty means the account of the pod
	// that Hallmark runs in.
	Kubeconfig string `json:"kubeconfig"`
	// The audiences of which a proxy's token must carry one.
	Audiences []string `json:"audiences"`
	// How old the last view of the cluster may be for the renewal of what a pod
	// already holds, while the Kubernetes API is away; at most 24h.
	MaxStaleness string `json:"maxStaleness"`
	// How long the API server's word about a token is believed; at most 10m. A pod
	// that is gone is noticed at once all the same.
	ReviewCache string `json:"reviewCache"`
	// What is done about a connection that does not come from the pod's own
	// address: disabled, log or enforce. With enforce, a stolen token is of no use
	// elsewhere; it cannot be used where addresses are translated between proxy
	// and Hallmark.
	SourceAddress string `json:"sourceAddress"`
	// Permits an audience of the API server's own in attest.audiences: every token
	// that pods send to the API server is then good for an identity, too. Which
	// they are is asked of the API server with Hallmark's own token, and without
	// this no token is taken while one is named. Where Hallmark shows a client
	// certificate instead, it is not known: only names that begin with
	// https://kubernetes.default are recognised.
	UnsafeAPIServerAudience bool `json:"unsafeAPIServerAudience"`
}

// Attest is the checked attestation of callers.
type Attest struct {
	Kubeconfig    string // absolute, or empty for the pod's own account
	Audiences     []string
	MaxStaleness  time.Duration
	ReviewCache   time.Duration
	SourceAddress attest.SourceAddressMode
	// UnsafeAPIServerAudience permits an audience of the API server's own.
	UnsafeAPIServerAudience bool
}

const (
	maxStaleness   = 24 * time.Hour
	maxReviewCache = 10 * time.Minute
	maxAudiences   = 8
)

func (c *checker) attest(f *attestFile) Attest {
	a := Attest{
		Kubeconfig:   f.Kubeconfig,
		Audiences:    f.Audiences,
		MaxStaleness: c.duration("attest.maxStaleness", f.MaxStaleness, maxStaleness),
		ReviewCache:  c.duration("attest.reviewCache", f.ReviewCache, maxReviewCache),
		SourceAddress: choose(c, "attest.sourceAddress", f.SourceAddress, []string{"disabled", "log", "enforce"},
			[]attest.SourceAddressMode{attest.SourceAddressDisabled, attest.SourceAddressLog, attest.SourceAddressEnforce}),
		UnsafeAPIServerAudience: f.UnsafeAPIServerAudience,
	}
	if f.Kubeconfig != "" && !filepath.IsAbs(f.Kubeconfig) {
		c.add("attest.kubeconfig", fmt.Sprintf("%q is no absolute path", f.Kubeconfig), "write the whole path")
	}
	if n := len(f.Audiences); n == 0 || n > maxAudiences {
		c.add("attest.audiences", fmt.Sprintf("%d audiences", n), fmt.Sprintf("name 1 to %d; proxies ask for istio-ca by default", maxAudiences))
	}
	for i, audience := range f.Audiences {
		switch {
		case audience == "" || len(audience) > 256 || strings.ContainsAny(audience, " \t\r\n"):
			c.add(at("attest.audiences", i), fmt.Sprintf("%q is no audience", audience), "write the text that stands in the token's aud claim")
		case strings.HasPrefix(audience, "https://kubernetes.default") && !f.UnsafeAPIServerAudience:
			c.add(at("attest.audiences", i), "it is the API server's own audience: any token that a pod sends to the API server would be good for its identity",
				"project a token with an audience of its own, or set attest.unsafeAPIServerAudience: true")
		}
	}
	return a
}
