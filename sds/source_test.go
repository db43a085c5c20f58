package sds_test

import (
	"context"
	"crypto/ecdsa"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/sds"
)

// mint makes SVIDs and bundles of a real authority.
type mint struct {
	*catest.Authority
	tb        testing.TB
	registrar *attest.Registrar
	cluster   *attesttest.Cluster
	identity  attest.Identity
}

// pod is the pod of every mint.
func pod() *attest.Pod {
	return attesttest.Pod("shop", "web-0", "web", "registry.example/web@sha256:aa")
}

func newMint(tb testing.TB) *mint {
	tb.Helper()
	td := attesttest.Domain(tb, "cluster.local")
	cluster := attesttest.NewCluster(td, time.Now)
	m := &mint{Authority: catest.New(tb, td, time.Now, nil), tb: tb, cluster: cluster, registrar: attesttest.NewRegistrar(tb, cluster, &attesttest.Gate{}, time.Now)}
	m.identity = attesttest.Caller(tb, m.registrar, cluster.Add(pod())).Identity
	return m
}

func (m *mint) bundle() *sds.Bundle {
	m.tb.Helper()
	b, err := sds.NewBundle(m.Current().TrustDomain(), m.Current().BundlePEM(), time.Now())
	if err != nil {
		m.tb.Fatal(err)
	}
	return b
}

// chain issues for a new key.
func (m *mint) chain() ([]byte, *ecdsa.PrivateKey) {
	m.tb.Helper()
	key := catest.Key(m.tb)
	issued, err := m.Issue(context.Background(), attesttest.Grant(m.tb, m.registrar, m.cluster.Add(pod())), ca.Request{Key: key.Public()})
	if err != nil {
		m.tb.Fatal(err)
	}
	return issued.FullChainPEM(), key
}

func (m *mint) svid() *sds.SVID {
	m.tb.Helper()
	chain, key := m.chain()
	v, err := sds.NewSVID(m.identity, chain, key, m.bundle(), time.Now())
	if err != nil {
		m.tb.Fatal(err)
	}
	return v
}

// source is a Source of one proxy that does what a test says.
type source struct {
	identity attest.Identity

	mu      sync.Mutex // guards all below
	expires time.Time
	svid    *sds.SVID
	bundle  *sds.Bundle
	holders map[*holder]struct{}
	opened  int
	unknown map[string]int
	answers []answered
	refused []attest.Reason
}

type answered struct{ name, version, refusal string }

func newSource(identity attest.Identity) *source {
	return &source{identity: identity, holders: map[*holder]struct{}{}, unknown: map[string]int{}}
}

// set has every stream look again.
func (s *source) set(change func(*source)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
	for h := range s.holders {
		select {
		case h.wake <- struct{}{}:
		default:
		}
	}
}

// end ends every stream.
func (s *source) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for h := range s.holders {
		if h.err == nil {
			h.err = err
			close(h.done)
		}
	}
}

func (s *source) Open(_ context.Context, cred attest.Credential) (sds.Holder, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened++
	if cred.Token != "good" {
		return nil, attest.Deny(attest.TokenRejected, "", "")
	}
	h := &holder{source: s, wake: make(chan struct{}, 1), done: make(chan struct{})}
	s.holders[h] = struct{}{}
	return h, nil
}

func (s *source) Refuse(_ context.Context, deny *attest.DenyError) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused = append(s.refused, deny.Reason)
	return deny
}

func (s *source) open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.holders)
}

type holder struct {
	source     *source
	wake, done chan struct{}

	// guarded by the source's lock
	wants bool
	svid  bool
	err   error
}

func (h *holder) LogValue() slog.Value      { return slog.StringValue("web-0") }
func (h *holder) Identity() attest.Identity { return h.source.identity }
func (h *holder) Wake() <-chan struct{}     { return h.wake }
func (h *holder) Done() <-chan struct{}     { return h.done }

func (h *holder) Expires() time.Time {
	h.source.mu.Lock()
	defer h.source.mu.Unlock()
	return h.source.expires
}

func (h *holder) Err() error {
	h.source.mu.Lock()
	defer h.source.mu.Unlock()
	return h.err
}

func (h *holder) Want(svid bool) {
	h.source.mu.Lock()
	defer h.source.mu.Unlock()
	h.wants, h.svid = true, svid
}

func (h *holder) SVID() *sds.SVID {
	h.source.mu.Lock()
	defer h.source.mu.Unlock()
	if !h.svid || h.err != nil {
		return nil
	}
	return h.source.svid
}

func (h *holder) Bundle() *sds.Bundle {
	h.source.mu.Lock()
	defer h.source.mu.Unlock()
	if !h.wants || h.err != nil {
		return nil
	}
	return h.source.bundle
}

func (h *holder) Answered(name, version, refusal string) {
	h.source.mu.Lock()
	defer h.source.mu.Unlock()
	h.source.answers = append(h.source.answers, answered{name, version, refusal})
}

func (h *holder) Unknown(name string) bool {
	h.source.mu.Lock()
	defer h.source.mu.Unlock()
	h.source.unknown[name]++
	return h.source.unknown[name] == 1
}

func (h *holder) Sample(string) (leftOut uint64, ok bool) { return 0, true }

func (h *holder) Refuse(ctx context.Context, deny *attest.DenyError) error {
	return h.source.Refuse(ctx, deny)
}

func (h *holder) Close() {
	h.source.mu.Lock()
	defer h.source.mu.Unlock()
	delete(h.source.holders, h)
}

// server runs an SDS server over source until the test ends.
func newServer(tb testing.TB, source sds.Source, change func(*sds.Config)) (*sds.Server, *prometheus.Registry, context.CancelFunc) {
	tb.Helper()
	registry := prometheus.NewRegistry()
	cfg := sds.Config{Source: source, Registerer: registry, Log: slog.New(slog.DiscardHandler), Now: time.Now}
	if change != nil {
		change(&cfg)
	}
	s, err := sds.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	})
	return s, registry, cancel
}
