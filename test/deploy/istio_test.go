package deploy_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/test/bench/proc"
	"github.com/hallmark-ca/hallmark/test/tools"
)

// pilotAgent has Istio's own agent fetch the identity, told of Hallmark by the two
// variables of docs/istio.md, with an RSA key (its default) and an ECDSA key. It
// runs without its Envoy and writes what it got.
func (sc *scene) pilotAgent(ctx context.Context, t *testing.T, s *server) {
	t.Helper()
	binary, err := tools.Path("pilot-agent")
	if err != nil {
		t.Fatal(err)
	}
	for _, algorithm := range []string{"", "ECDSA"} {
		_, token := sc.pod(ctx, t)
		dir := t.TempDir()
		// Its paths are relative to its working directory.
		for name, content := range map[string]string{
			"var/run/secrets/tokens/istio-token": token,
			// No status server: it would listen on all addresses.
			"etc/istio/pod/annotations": "status.sidecar.istio.io/port=\"0\"\n",
			"out/.keep":                 "",
		} {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		out := filepath.Join(dir, "out")
		agent, err := proc.Start(context.WithoutCancel(ctx), proc.Config{
			Path: binary, Dir: dir, Log: filepath.Join(dir, "log"), Args: []string{"proxy", "sidecar", "--domain", sc.ns + ".svc.cluster.local"},
			Env: []string{
				"CA_ADDR=" + s.mesh, "CA_ROOT_CA=" + s.bundle,
				"XDS_ROOT_CA=" + s.bundle, "HOME=" + dir, "OUTPUT_CERTS=" + out, "DISABLE_ENVOY=true", "TRUST_DOMAIN=cluster.local",
				"POD_NAME=pilot", "POD_NAMESPACE=" + sc.ns, "SERVICE_ACCOUNT=" + sc.sa, "INSTANCE_IP=127.0.0.1",
				"ISTIO_META_CLUSTER_ID=Kubernetes", "ECC_SIGNATURE_ALGORITHM=" + algorithm, `PROXY_CONFIG={"discoveryAddress":"127.0.0.1:1"}`,
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(agent.Stop)
		limit, cancel := context.WithTimeout(ctx, within)
		err = agent.Await(limit, func(context.Context) error { return sc.chains(out, s.bundle) })
		cancel()
		if err != nil {
			t.Errorf("key %q: %v", algorithm, err)
		}
		agent.Stop()
	}
}

// chains tells whether the files that pilot-agent writes hold this account's
// identity, and lead to the root that it was told of and was given.
func (sc *scene) chains(dir, bundle string) error {
	for _, roots := range []string{bundle, filepath.Join(dir, "root-cert.pem")} {
		trusted, err := certificates(roots)
		if err != nil {
			return err
		}
		chain, err := certificates(filepath.Join(dir, "cert-chain.pem"))
		if err != nil {
			return err
		}
		options := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		for _, c := range trusted {
			options.Roots.AddCert(c)
		}
		for _, c := range chain[1:] {
			options.Intermediates.AddCert(c)
		}
		leaf := chain[0]
		if _, err := leaf.Verify(options); err != nil {
			return fmt.Errorf("verifying with %s: %w", roots, err)
		}
		if want := "spiffe://cluster.local/ns/" + sc.ns + "/sa/" + sc.sa; len(leaf.URIs) != 1 || leaf.URIs[0].String() != want {
			return fmt.Errorf("it is for %v, want %s", leaf.URIs, want)
		}
		// It asks for 24 h, and gets at most 5 % less.
		if life := time.Until(leaf.NotAfter); life > 24*time.Hour || life < 22*time.Hour {
			return fmt.Errorf("it lives for %s", life)
		}
	}
	return nil
}

func certificates(file string) ([]*x509.Certificate, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var ders bytes.Buffer
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		ders.Write(block.Bytes)
	}
	certs, err := x509.ParseCertificates(ders.Bytes())
	if err == nil && len(certs) == 0 {
		err = fmt.Errorf("there is no certificate in %s", file)
	}
	return certs, err
}
