package e2e_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/test/bench/caller"
	"github.com/hallmark-ca/hallmark/test/bench/hallmark"
	"github.com/hallmark-ca/hallmark/test/bench/mesh"
	"github.com/hallmark-ca/hallmark/test/bench/proc"
	"github.com/hallmark-ca/hallmark/test/tools"
)

// Istio's own agent gets the pod's identity from CreateCertificate, with the
// keys that it makes, and writes what every Istio proxy would use; for a pod
// with an unsigned image it gets nothing.
func TestPilotAgent(t *testing.T) {
	tools.Need(t, "pilot-agent")
	s := newScene(t, 3*time.Minute, mesh.Config{Settings: map[string]any{
		// The name that the agent checks where the address is one of this host.
		"mesh.names": []string{hallmark.ServerName, "istiod.istio-system.svc"},
	}})
	for _, tt := range []struct {
		name, algorithm string
		isKey           func(any) bool
	}{
		{"ecdsa", "ECDSA", func(k any) bool { _, ok := k.(*ecdsa.PublicKey); return ok }},
		{"rsa", "", func(k any) bool { _, ok := k.(*rsa.PublicKey); return ok }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sub := *s
			sub.t = t
			pod := sub.run("agent-" + tt.name)
			a := sub.startAgent(pod, tt.algorithm)
			var leaf *x509.Certificate
			must(t, a.process.Await(sub.ctx, func(_ context.Context) error {
				var err error
				leaf, err = a.read(pod.Identity())
				return err
			}))
			if !tt.isKey(leaf.PublicKey) {
				t.Errorf("the certificate is for a %T", leaf.PublicKey)
			}
			// The agent asks for a day, and gets it but for a little.
			if life := time.Until(leaf.NotAfter); life > 24*time.Hour || life < 22*time.Hour {
				t.Errorf("it lives %s", life)
			}
			sub.eventually(5*time.Second, func() error {
				entries, err := sub.Hallmark.Query(sub.ctx, "--serial", leaf.SerialNumber.Text(16))
				must(t, err)
				if len(entries) != 1 || entries[0].Issuance.PodUID != string(pod.UID) || entries[0].Issuance.Door != "istio-ca" {
					return fmt.Errorf("the ledger says %+v", entries)
				}
				return nil
			})
		})
	}
	t.Run("unsigned", func(t *testing.T) {
		sub := *s
		sub.t = t
		pod := sub.run("agent-unsigned", app(sub.unsigned("app").String()))
		before := sub.metrics().Refusals("ImageUnsigned")
		a := sub.startAgent(pod, "ECDSA")
		sub.eventually(20*time.Second, func() error { return sub.atLeast("ImageUnsigned", before+1) })
		if _, err := a.read(pod.Identity()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the agent of an unsigned pod wrote something: %v", err)
		}
	})
}

// agent is a pilot-agent without Envoy, which writes its certificate to files.
type agent struct {
	process *proc.Process
	out     string
}

// startAgent runs one. All its paths are relative to its working directory.
func (s *scene) startAgent(p *mesh.Pod, algorithm string) *agent {
	s.t.Helper()
	path, err := tools.Path("pilot-agent")
	must(s.t, err)
	work, out := s.t.TempDir(), s.t.TempDir()
	for name, text := range map[string]string{
		"var/run/secrets/tokens/istio-token": s.token(p),
		// No status server: it would listen on every address.
		"etc/istio/pod/annotations": "status.sidecar.istio.io/port=\"0\"\n",
	} {
		file := filepath.Join(work, name)
		must(s.t, os.MkdirAll(filepath.Dir(file), 0o700))
		must(s.t, os.WriteFile(file, []byte(text), 0o600))
	}
	must(s.t, os.MkdirAll(filepath.Join(work, "etc/istio/proxy"), 0o700))
	process, err := proc.Start(s.ctx, proc.Config{
		Path: path, Args: []string{"proxy", "sidecar", "--domain", p.Namespace + ".svc.cluster.local"}, Dir: work, Log: filepath.Join(out, "log"),
		Env: []string{
			"PATH=/usr/bin:/bin", "HOME=" + work, "CA_PROVIDER=Citadel", "CA_ADDR=" + s.Hallmark.Addr(),
			"CA_ROOT_CA=" + s.Hallmark.Bundle(), "XDS_ROOT_CA=" + s.Hallmark.Bundle(), "OUTPUT_CERTS=" + out, "DISABLE_ENVOY=true",
			"POD_NAME=" + p.Name, "POD_NAMESPACE=" + p.Namespace, "SERVICE_ACCOUNT=" + p.Account.Name, "INSTANCE_IP=127.0.0.1",
			"TRUST_DOMAIN=" + hallmark.TrustDomain, "SECRET_TTL=24h", "ECC_SIGNATURE_ALGORITHM=" + algorithm,
			"ISTIO_META_CLUSTER_ID=Kubernetes", "ISTIO_META_CERT_SIGNER=", `PROXY_CONFIG={"discoveryAddress":"127.0.0.1:1"}`,
		},
	})
	must(s.t, err)
	s.t.Cleanup(process.Stop)
	return &agent{process: process, out: out}
}

// read returns the leaf that the agent wrote, after it has verified the chain,
// the key and the name.
func (a *agent) read(identity string) (*x509.Certificate, error) {
	files := map[string][]byte{}
	for _, name := range []string{"cert-chain.pem", "key.pem", "root-cert.pem"} {
		b, err := os.ReadFile(filepath.Join(a.out, name))
		if err != nil {
			return nil, err
		}
		files[name] = b
	}
	chain, err := caller.Certificates(files["cert-chain.pem"])
	if err != nil {
		return nil, err
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(files["root-cert.pem"])
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	leaf := chain[0]
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between}); err != nil {
		return nil, err
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != identity {
		return nil, fmt.Errorf("it is for %v", leaf.URIs)
	}
	return leaf, sameKey(leaf, files["key.pem"])
}

// sameKey tells whether the private key is that of the certificate.
func sameKey(leaf *x509.Certificate, keyPEM []byte) error {
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return errors.New("the key is no PEM")
	}
	var key any
	var err error
	for _, parse := range []func([]byte) (any, error){
		x509.ParsePKCS8PrivateKey,
		func(b []byte) (any, error) { return x509.ParseECPrivateKey(b) },
		func(b []byte) (any, error) { return x509.ParsePKCS1PrivateKey(b) },
	} {
		if key, err = parse(block.Bytes); err == nil {
			break
		}
	}
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		if k.PublicKey.Equal(leaf.PublicKey) {
			return nil
		}
	case *rsa.PrivateKey:
		if k.PublicKey.Equal(leaf.PublicKey) {
			return nil
		}
	default:
		return fmt.Errorf("the key is a %T: %w", key, err)
	}
	return errors.New("key and certificate differ")
}
