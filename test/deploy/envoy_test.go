package deploy_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/hallmark-ca/hallmark/test/tools"
)

// TestEnvoySamples has Envoy itself load the samples. Changed are only the folders
// that a pod mounts.
func TestEnvoySamples(t *testing.T) {
	tools.Need(t, "envoy")
	binary, err := tools.Path("envoy")
	if err != nil {
		t.Fatal(err)
	}
	samples, err := filepath.Glob(deployDir + "/envoy/sidecar-*.yaml")
	if err != nil || len(samples) != 2 {
		t.Fatalf("samples: %v %v", samples, err)
	}
	for _, sample := range samples {
		t.Run(filepath.Base(sample), func(t *testing.T) {
			dir := t.TempDir()
			here := strings.NewReplacer("/var/run/secrets/", dir+"/", "/etc/envoy/", dir+"/")
			files := map[string][]byte{
				"hallmark/bundle.pem": authority(t), "tokens/istio-token": []byte("a"),
				"token.yaml": read(t, deployDir+"/envoy/token.yaml"), "trust.yaml": read(t, deployDir+"/envoy/trust.yaml"), "envoy.yaml": read(t, sample),
			}
			for name, content := range files {
				path := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if strings.HasSuffix(name, ".yaml") {
					if err := yaml.UnmarshalStrict(content, new(map[string]any)); err != nil {
						t.Errorf("%s: %v", name, err)
					}
					content = []byte(here.Replace(string(content)))
				}
				if err := os.WriteFile(path, content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(context.Background(), within)
			defer cancel()
			out, err := exec.CommandContext(ctx, binary, "--mode", "validate", "-c", filepath.Join(dir, "envoy.yaml")).CombinedOutput()
			if err != nil {
				t.Errorf("Envoy refuses it: %v\n%s", err, out)
			}
			if strings.Contains(string(out), "eprecated") {
				t.Errorf("Envoy says that something is deprecated:\n%s", out)
			}
		})
	}
}

// TestEnvoySamplesDifferInOneThing holds the two ways together: all but how they
// reach Hallmark is the same.
func TestEnvoySamplesDifferInOneThing(t *testing.T) {
	var listeners [2]string
	for i, name := range []string{"sidecar-envoy-grpc.yaml", "sidecar-google-grpc.yaml"} {
		var sample map[string]any
		if err := yaml.UnmarshalStrict(read(t, deployDir+"/envoy/"+name), &sample); err != nil {
			t.Fatal(err)
		}
		resources := sample["static_resources"].(map[string]any)
		text, err := json.Marshal(map[string]any{"node": sample["node"], "admin": sample["admin"], "listeners": withoutService(resources["listeners"])})
		if err != nil {
			t.Fatal(err)
		}
		listeners[i] = string(text)
	}
	if listeners[0] != listeners[1] {
		t.Errorf("the samples differ in more than how they reach Hallmark:\n%s\n%s", listeners[0], listeners[1])
	}
}

// authority is a root certificate in PEM, of a key that is thrown away.
func authority(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a root"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// withoutService leaves out every grpc_services.
func withoutService(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for key, value := range v {
			if key != "grpc_services" {
				out[key] = withoutService(value)
			}
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, value := range v {
			out[i] = withoutService(value)
		}
		return out
	}
	return v
}
