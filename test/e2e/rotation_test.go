package e2e_test

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/test/bench/caller"
	"github.com/hallmark-ca/hallmark/test/bench/envoy"
	"github.com/hallmark-ca/hallmark/test/bench/mesh"
)

// rotating has leaves of half a minute, and gates that are looked at as often.
func rotating() map[string]any {
	settings := shortLeaves("20s")
	settings["authority.leaf.max"] = "30s"
	settings["authority.issuingLifetime"] = "10m"
	settings["bundle.readWithin"] = "1s"
	settings["rotation.rehearsalWindow"] = "20s"
	return settings
}

// rotation is what `hallmark rotate status -o json` says.
type rotation struct {
	Phase string
	Roots []struct {
		ID    string
		Phase string
	}
	Gates []struct {
		Name, Why, Mend        string
		Consumers, BehindCount int
	}
	Wait struct{ For, Reason string }
}

func (r rotation) root(phase string) string {
	for _, root := range r.Roots {
		if root.Phase == phase {
			return root.ID
		}
	}
	return ""
}

func (s *scene) rotation() (rotation, error) {
	var r rotation
	out, err := s.Hallmark.Run(s.ctx, "rotate", "status", "-o", "json")
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	return r, err
}

// until waits for a phase of a root.
func (s *scene) until(within time.Duration, root, phase string) {
	s.t.Helper()
	s.eventually(within, func() error {
		r, err := s.rotation()
		if err != nil {
			return err
		}
		for _, known := range r.Roots {
			if known.ID == root && known.Phase == phase {
				return nil
			}
		}
		return fmt.Errorf("not yet %s: %+v", phase, r)
	})
}

// A root is replaced by the next, from the first phase to the last, by itself:
// while two Envoys talk, and a third party makes a new connection for each
// request, no request fails, and handshakes are seen under each root.
func TestRotationWithoutAFailedRequest(t *testing.T) {
	s := newScene(t, 6*time.Minute, mesh.Config{Settings: rotating()})
	client, server := s.run("client"), s.run("server")
	p := s.newPair(envoy.EnvoyGRPC, "", "", client, server)
	before, err := s.rotation()
	must(t, err)
	old := before.root("active")

	stop := p.traffic()
	newcomer := s.newNewcomer(client, p.server.Inbound())
	handshakes := newcomer.start()

	if _, err := s.Hallmark.Run(s.ctx, "rotate", "run"); err != nil {
		t.Fatal(err)
	}
	s.until(2*time.Minute, old, "draining")
	s.until(2*time.Minute, old, "retired")
	after, err := s.rotation()
	must(t, err)
	if active := after.root("active"); active == "" || active == old {
		t.Errorf("the active root is %s, after %s", active, old)
	}
	// Life goes on under the new root alone.
	s.eventually(time.Minute, func() error {
		for _, e := range []*envoy.Envoy{p.client, p.server} {
			roots, err := e.Roots(s.ctx)
			if err != nil {
				return err
			}
			for _, root := range roots {
				if hex.EncodeToString(root.SubjectKeyId) == old {
					return errors.New("an Envoy still trusts the old root")
				}
			}
		}
		return nil
	})
	must(t, p.call())

	calls, failed := stop()
	if len(failed) > 0 || calls < 500 {
		t.Errorf("%d of %d requests between Envoys failed: %v", len(failed), calls, failed)
	}
	under, failed := handshakes()
	t.Logf("%d requests between Envoys, new connections by root: %v", calls, under)
	if len(failed) > 0 {
		t.Errorf("new connections failed: %v", failed)
	}
	if under[old] == 0 || under[after.root("active")] == 0 {
		t.Errorf("handshakes by root: %v; none under the old (%s) or the new (%s)", under, old, after.root("active"))
	}
	if out, err := s.Hallmark.Run(s.ctx, "journal", "verify"); err != nil {
		t.Errorf("journal verify: %v\n%s", err, out)
	}
	if report, err := s.Hallmark.Verify(s.ctx); err != nil {
		t.Errorf("ledger verify: %v %+v", err, report)
	}
}

// A proxy that does not answer is named, and holds gate A; when it goes on, the
// gate opens.
func TestStoppedProxyHoldsTheGate(t *testing.T) {
	s := newScene(t, 4*time.Minute, mesh.Config{Settings: rotating()})
	p := s.newPair(envoy.EnvoyGRPC, "", "", s.run("client"), s.run("server"))
	p.server.Pause()
	resumed := false
	defer func() {
		if !resumed {
			p.server.Resume()
		}
	}()
	if _, err := s.Hallmark.Run(s.ctx, "rotate", "start"); err != nil {
		t.Fatal(err)
	}
	s.eventually(20*time.Second, func() error {
		r, err := s.rotation()
		if err != nil {
			return err
		}
		if len(r.Gates) != 1 || r.Gates[0].Name != "A" || r.Gates[0].BehindCount != 1 {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	out, err := s.Hallmark.Run(s.ctx, "rotate", "status")
	must(t, err)
	if !strings.Contains(string(out), "server") {
		t.Errorf("the status does not name the pod that is behind:\n%s", out)
	}
	t.Logf("%s", out)
	if out, err := s.Hallmark.Run(s.ctx, "rotate", "activate"); err == nil {
		t.Errorf("activated through a gate that is shut:\n%s", out)
	} else if !strings.Contains(err.Error(), "1 of ") {
		t.Errorf("the refusal does not count who is behind: %v", err)
	}
	p.server.Resume()
	resumed = true
	s.eventually(time.Minute, func() error {
		_, err := s.Hallmark.Run(s.ctx, "rotate", "activate")
		return err
	})
	s.eventually(30*time.Second, p.call)
}

// kill -9 in each phase: the rotation goes on where it was, and proxies notice
// nothing.
func TestRotationSurvivesKills(t *testing.T) {
	s := newScene(t, 6*time.Minute, mesh.Config{Settings: rotating()})
	p := s.newPair(envoy.EnvoyGRPC, "", "", s.run("client"), s.run("server"))
	stop := p.traffic()
	before, err := s.rotation()
	must(t, err)
	old := before.root("active")
	if _, err := s.Hallmark.Run(s.ctx, "rotate", "run"); err != nil {
		t.Fatal(err)
	}
	for _, phase := range []string{"active", "draining", "retired"} {
		s.until(2*time.Minute, old, phase)
		s.Hallmark.Kill()
		must(t, s.Hallmark.Start(s.ctx))
	}
	must(t, p.call())
	if calls, failed := stop(); len(failed) > 0 || calls < 500 {
		t.Errorf("%d of %d requests between Envoys failed: %v", len(failed), calls, failed)
	}
	if out, err := s.Hallmark.Run(s.ctx, "journal", "verify"); err != nil {
		t.Errorf("journal verify: %v\n%s", err, out)
	}
}

// newcomer is a client without an Envoy, which renews by CreateCertificate on a
// new connection each time, and makes a new connection for every request.
type newcomer struct {
	s     *scene
	pod   *mesh.Pod
	token string
	addr  string
}

func (s *scene) newNewcomer(p *mesh.Pod, addr string) *newcomer {
	return &newcomer{s: s, pod: p, token: s.token(p), addr: addr}
}

// identity is a certificate, and what it came with.
type identity struct {
	cert  tls.Certificate
	roots *x509.CertPool
}

func (n *newcomer) renew(ctx context.Context) (*identity, error) {
	conn, err := n.s.Dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	csr, key, err := caller.NewCSR(n.pod.Identity())
	if err != nil {
		return nil, err
	}
	chain, err := conn.Create(ctx, n.token, csr, 20)
	if err != nil {
		return nil, err
	}
	return parse(chain, key)
}

func parse(chain []string, key crypto.Signer) (*identity, error) {
	id := &identity{cert: tls.Certificate{PrivateKey: key}, roots: x509.NewCertPool()}
	for _, element := range chain[:len(chain)-1] {
		certs, err := caller.Certificates([]byte(element))
		if err != nil {
			return nil, err
		}
		for _, cert := range certs {
			id.cert.Certificate = append(id.cert.Certificate, cert.Raw)
		}
	}
	if !id.roots.AppendCertsFromPEM([]byte(chain[len(chain)-1])) {
		return nil, errors.New("no roots")
	}
	return id, nil
}

// start connects until the returned function is called, which says how many
// handshakes were under each root, and which failed.
func (n *newcomer) start() (stop func() (under map[string]int, failed []string)) {
	n.s.t.Helper()
	ctx, cancel := context.WithCancel(n.s.ctx)
	id, err := n.renew(ctx)
	must(n.s.t, err)
	under, failed := map[string]int{}, []string(nil)
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		renewed := time.Now()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if time.Since(renewed) > 9*time.Second {
				if next, err := n.renew(ctx); err == nil {
					id, renewed = next, time.Now()
				} else if time.Since(renewed) > 15*time.Second && ctx.Err() == nil {
					failed = append(failed, "renewing: "+err.Error())
				}
			}
			root, err := n.connect(ctx, id)
			if err != nil && ctx.Err() == nil {
				failed = append(failed, err.Error())
			}
			under[root]++
		}
	})
	return func() (map[string]int, []string) {
		cancel()
		wg.Wait()
		delete(under, "")
		return under, failed
	}
}

// connect does one handshake and request, and returns the root that the server's
// certificate was under.
func (n *newcomer) connect(ctx context.Context, id *identity) (root string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{id.cert},
		// Names are SPIFFE IDs here; the chain is verified below, against the bundle.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			between := x509.NewCertPool()
			for _, cert := range state.PeerCertificates[1:] {
				between.AddCert(cert)
			}
			chains, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: id.roots, Intermediates: between})
			if err == nil {
				chain := chains[0]
				root = hex.EncodeToString(chain[len(chain)-1].SubjectKeyId)
			}
			return err
		},
	}
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", n.addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return root, err
	}
	// In TLS 1.3 the server's refusal of our certificate shows at the first read.
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n"); err != nil {
		return root, err
	}
	status := make([]byte, len("HTTP/1.1 200"))
	if _, err := conn.Read(status); err != nil {
		return root, err
	}
	if string(status) != "HTTP/1.1 200" {
		return root, fmt.Errorf("answered %q", status)
	}
	return root, nil
}
