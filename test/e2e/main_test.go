package e2e_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hallmark-ca/hallmark/test/bench/caller"
	"github.com/hallmark-ca/hallmark/test/bench/cluster"
	"github.com/hallmark-ca/hallmark/test/bench/hallmark"
	"github.com/hallmark-ca/hallmark/test/bench/mesh"
	"github.com/hallmark-ca/hallmark/test/bench/pods"
	"github.com/hallmark-ca/hallmark/test/bench/registry"
)

func TestMain(m *testing.M) { os.Exit(cluster.Main(m)) }

// doors are the two front ends, as metrics and ledger name them.
var doors = []string{"istio-ca", "sds"}

// scene is a mesh that runs, with a connection to it.
type scene struct {
	*mesh.Mesh
	t    *testing.T
	ctx  context.Context
	conn caller.Conn
}

// newScene starts a mesh for one test, which may last as long as given.
func newScene(t *testing.T, within time.Duration, cfg mesh.Config) *scene {
	t.Helper()
	m := mesh.ForTest(t, cfg)
	ctx, cancel := context.WithTimeout(context.Background(), within)
	t.Cleanup(cancel)
	conn, err := m.Dial()
	must(t, err)
	return &scene{Mesh: m, t: t, ctx: ctx, conn: conn}
}

// signed is an image that policy passes.
func (s *scene) signed(repo string) registry.Image {
	s.t.Helper()
	img, err := s.Signed(s.ctx, repo)
	must(s.t, err)
	return img
}

func (s *scene) unsigned(repo string) registry.Image {
	s.t.Helper()
	img, err := s.Unsigned(repo)
	must(s.t, err)
	return img
}

// run makes a pod; without containers it runs one signed image.
func (s *scene) run(name string, containers ...pods.Container) *mesh.Pod {
	s.t.Helper()
	if len(containers) == 0 {
		containers = []pods.Container{{Image: s.signed("app").String()}}
	}
	p, err := s.Run(s.ctx, name, containers...)
	must(s.t, err)
	return p
}

func (s *scene) token(p *mesh.Pod) string {
	s.t.Helper()
	token, err := p.Token(s.ctx)
	must(s.t, err)
	return token
}

// create asks for a certificate as Istio's agents do and returns the leaf, after
// it has verified the chain.
func (s *scene) create(p *mesh.Pod, token string) (*x509.Certificate, error) {
	s.t.Helper()
	csr, _, err := caller.NewCSR(p.Identity())
	must(s.t, err)
	chain, err := s.conn.Create(s.ctx, token, csr, 3600)
	if err != nil {
		return nil, err
	}
	return s.verified(chain, p.Identity())
}

// verified checks an answer of CreateCertificate as a peer would.
func (s *scene) verified(chain []string, identity string) (*x509.Certificate, error) {
	if len(chain) < 2 {
		return nil, fmt.Errorf("a chain of %d elements", len(chain))
	}
	leaf, err := caller.Certificates([]byte(chain[0]))
	if err != nil {
		return nil, err
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(chain[len(chain)-1])) {
		return nil, errors.New("no roots at the end of the chain")
	}
	for _, c := range chain[1 : len(chain)-1] {
		between.AppendCertsFromPEM([]byte(c))
	}
	if _, err := leaf[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return nil, err
	}
	if len(leaf[0].URIs) != 1 || leaf[0].URIs[0].String() != identity {
		return nil, fmt.Errorf("it is for %v, want %s", leaf[0].URIs, identity)
	}
	return leaf[0], nil
}

// mustCreate is create for a pod that has to get its certificate.
func (s *scene) mustCreate(p *mesh.Pod) *x509.Certificate {
	s.t.Helper()
	leaf, err := s.create(p, s.token(p))
	if err != nil {
		s.t.Fatalf("pod %s gets no certificate: %v", p.Name, err)
	}
	return leaf
}

// fetch opens an SDS stream, asks for the names, and returns the first answer.
func (s *scene) fetch(token, nodeID string, names ...string) (*caller.Answer, error) {
	s.t.Helper()
	stream, err := s.conn.Stream(s.ctx, token, nodeID)
	must(s.t, err)
	defer stream.Close()
	if err := stream.Ask(nil, names...); err != nil && !strings.Contains(err.Error(), "EOF") {
		s.t.Fatal(err) // EOF: refused already, and Next says why
	}
	return stream.Next()
}

// ask asks at one of the doors for the pod's identity.
func (s *scene) ask(door string, p *mesh.Pod, token string) error {
	s.t.Helper()
	if door == "sds" {
		_, err := s.fetch(token, "bench", "default")
		return err
	}
	_, err := s.create(p, token)
	return err
}

func (s *scene) metrics() hallmark.Metrics {
	s.t.Helper()
	m, err := s.Hallmark.Metrics(s.ctx)
	must(s.t, err)
	return m
}

// atLeast is nil once the server has refused n times for the reason.
func (s *scene) atLeast(reason string, n float64) error {
	s.t.Helper()
	if got := s.metrics().Refusals(reason); got < n {
		return fmt.Errorf("refused %v times for %s, not yet %v", got, reason, n)
	}
	return nil
}

// eventually asks ready until it returns nil, for as long as given.
func (s *scene) eventually(within time.Duration, ready func() error) {
	s.t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			s.t.Fatalf("not within %s: %v", within, err)
		}
	}
}

// pass waits for time to pass where time itself is what matters.
func (s *scene) pass(d time.Duration) {
	s.t.Helper()
	select {
	case <-time.After(d):
	case <-s.ctx.Done():
		s.t.Fatal(s.ctx.Err())
	}
}

// wantDenied checks a refusal: its code, and that its text names the reason and
// what the caller may know.
func wantDenied(t *testing.T, err error, code codes.Code, texts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("granted, want %s (%s)", code, strings.Join(texts, ", "))
		return
	}
	st, _ := status.FromError(err)
	if st.Code() != code {
		t.Errorf("refused with %v, want %s", err, code)
	}
	for _, text := range texts {
		if !strings.Contains(st.Message(), text) {
			t.Errorf("the answer %q does not say %q", st.Message(), text)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
