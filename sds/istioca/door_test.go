package istioca_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
	"istio.io/api/security/v1alpha1"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/sds/istioca"
	"github.com/hallmark-ca/hallmark/sds/ra"
	"github.com/hallmark-ca/hallmark/sds/ra/ratest"
)

// door is Istio's door of a world, served over TLS on loopback.
type door struct {
	*ratest.World
	addr   string
	client v1alpha1.IstioCertificateServiceClient
	key    crypto.Signer
}

func open(tb testing.TB, cfg ratest.Config, change func(*ra.ServerConfig)) *door {
	tb.Helper()
	w := ratest.New(tb, cfg)
	service, err := istioca.New(istioca.Config{RA: w.RA, Registerer: w.Metrics})
	if err != nil {
		tb.Fatal(err)
	}
	server := w.Server(tb, change)
	service.Register(server.Registrar())
	d := &door{World: w, addr: ratest.Serve(tb, server).Addr, key: catest.Key(tb)}
	d.client = v1alpha1.NewIstioCertificateServiceClient(w.Dial(tb, d.addr))
	return d
}

const image = "registry.test/app@sha256:1"

// pod adds a pod of account default, and returns it, its token and its identity.
func (d *door) pod(tb testing.TB, name string) (*attest.Pod, string, attest.Identity) {
	tb.Helper()
	pod, token := d.Pod("shop", name, "default", image)
	return pod, token, d.Identity(tb, "shop", "default")
}

// request is what clients send: 24 h, and metadata.
func request(tb testing.TB, csr []byte, metadata map[string]any) *v1alpha1.IstioCertificateRequest {
	tb.Helper()
	fields, err := structpb.NewStruct(metadata)
	if err != nil {
		tb.Fatal(err)
	}
	return &v1alpha1.IstioCertificateRequest{Csr: string(csr), ValidityDuration: int64(24 * time.Hour / time.Second), Metadata: fields}
}

// call sends req with token, and gives up after ten seconds.
func (d *door) call(tb testing.TB, token string, req *v1alpha1.IstioCertificateRequest, opts ...grpc.CallOption) (*v1alpha1.IstioCertificateResponse, error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return d.client.CreateCertificate(ratest.With(ctx, token), req, opts...)
}

// parse reads every certificate of one element.
func parse(tb testing.TB, element string) []*x509.Certificate {
	tb.Helper()
	var out []*x509.Certificate
	for rest := []byte(element); len(rest) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			tb.Fatalf("not PEM to the end: %q", rest)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			tb.Fatal(err)
		}
		out = append(out, cert)
	}
	return out
}

func TestAnswerHasIstiosForm(t *testing.T) {
	t.Parallel()
	d := open(t, ratest.Config{}, nil)
	d.Authority.AddRoot(t) // two roots
	_, token, identity := d.pod(t, "web-1")
	for name, req := range map[string]*v1alpha1.IstioCertificateRequest{
		"ztunnel":                request(t, catest.CSR(t, d.key, identity), nil),
		"ztunnel in shared mode": request(t, catest.CSR(t, d.key, identity), map[string]any{"ImpersonatedIdentity": identity.String()}),
		"pilot-agent":            request(t, catest.PilotCSR(t, catest.RSA(t, 2048), identity), map[string]any{"CertSigner": ""}),
		"no name in it":          request(t, catest.CSR(t, d.key, attest.Identity{}), nil),
		"other metadata":         request(t, catest.CSR(t, d.key, identity), map[string]any{"Future": map[string]any{"deep": []any{1.0, nil}}}),
	} {
		t.Run(name, func(t *testing.T) {
			answer, err := d.call(t, token, req)
			if err != nil {
				t.Fatal(err)
			}
			checkAnswer(t, d, answer, identity)
		})
	}
	if got := d.Count(t, "citadel_server_success_cert_issuance_count"); got != 5 {
		t.Errorf("Istio's counter of certificates is %v", got)
	}
}

func checkAnswer(t *testing.T, d *door, answer *v1alpha1.IstioCertificateResponse, identity attest.Identity) {
	t.Helper()
	chain := answer.GetCertChain()
	if len(chain) < 3 {
		t.Fatalf("%d elements, want leaf, issuing CA and bundle", len(chain))
	}
	inter := x509.NewCertPool()
	for i, element := range chain {
		if !strings.HasSuffix(element, "\n") {
			t.Errorf("element %d does not end with a newline", i)
		}
		if n := len(parse(t, element)); i < len(chain)-1 && n != 1 {
			t.Errorf("element %d holds %d certificates", i, n)
		}
	}
	for _, element := range chain[1 : len(chain)-1] {
		inter.AddCert(parse(t, element)[0])
	}
	bundle := parse(t, chain[len(chain)-1])
	if want := len(d.Authority.Current().Roots()); len(bundle) != want {
		t.Errorf("the last element holds %d roots, want %d", len(bundle), want)
	}
	roots := x509.NewCertPool()
	for _, root := range bundle {
		roots.AddCert(root)
	}
	leaf := parse(t, chain[0])[0]
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != identity.String() {
		t.Errorf("the leaf names %v", leaf.URIs)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if life := time.Until(leaf.NotAfter); life > 24*time.Hour || life < 22*time.Hour {
		t.Errorf("asked for 24 h, got %s", life)
	}
}

func TestTailFollowsTheSnapshot(t *testing.T) {
	t.Parallel()
	d := open(t, ratest.Config{}, nil)
	_, token, identity := d.pod(t, "web-1")
	for i := range 3 {
		answer, err := d.call(t, token, request(t, catest.CSR(t, d.key, identity), nil))
		if err != nil {
			t.Fatal(err)
		}
		checkAnswer(t, d, answer, identity)
		if got := len(parse(t, answer.GetCertChain()[2])); got != i+1 {
			t.Errorf("%d roots, want %d", got, i+1)
		}
		d.Authority.AddRoot(t)
		d.Authority.Renew(t)
	}
}
