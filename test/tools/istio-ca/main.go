// Command istio-ca is Istio's own certificate authority, the packages that
// istiod runs, as a server of its own for comparisons: CreateCertificate over
// TLS, an ECDSA P-256 issuing CA below a P-256 root, istiod's gRPC options.
//
// What istiod does besides is left out, all of it in Istio's favour: the token
// is not reviewed (whoever sends one gets the identity of --identity), nothing
// is recorded, and no interceptor counts.
//
//	istio-ca --listen 127.0.0.1:15012 --dir DIR    # writes DIR/bundle.pem
package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	istiogrpc "istio.io/istio/pilot/pkg/grpc"
	"istio.io/istio/pkg/keepalive"
	"istio.io/istio/pkg/security"
	"istio.io/istio/security/pkg/pki/ca"
	caserver "istio.io/istio/security/pkg/server/ca"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on")
	dir := flag.String("dir", "", "an existing directory for keys and certificates")
	identity := flag.String("identity", "spiffe://cluster.local/ns/load/sa/caller", "the SPIFFE ID that every caller gets")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *listen, *dir, *identity)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "istio-ca:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, listen, dir, identity string) error {
	if dir == "" {
		return errors.New("--dir is required")
	}
	serving, err := makeAuthority(dir)
	if err != nil {
		return fmt.Errorf("making an authority: %w", err)
	}
	options, err := ca.NewPluggedCertIstioCAOptions(ca.SigningCAFileBundle{
		RootCertFile: filepath.Join(dir, "bundle.pem"), CertChainFiles: []string{filepath.Join(dir, "cert-chain.pem")},
		SigningCertFile: filepath.Join(dir, "ca-cert.pem"), SigningKeyFile: filepath.Join(dir, "ca-key.pem"),
	}, 24*time.Hour, 90*24*time.Hour, 2048)
	if err != nil {
		return err
	}
	authority, err := ca.NewIstioCA(options)
	if err != nil {
		return err
	}
	server, err := caserver.New(authority, 24*time.Hour, []security.Authenticator{anyone{identity}}, nil)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp4", listen)
	if err != nil {
		return err
	}
	opts := append(istiogrpc.ServerOptions(keepalive.DefaultOption(), func(int64) {}),
		grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{serving}, MinVersion: tls.VersionTLS12})))
	s := grpc.NewServer(opts...)
	server.Register(s)
	defer context.AfterFunc(ctx, s.Stop)()
	fmt.Println("serving on", l.Addr())
	return s.Serve(l)
}

// anyone is the lightest authenticator: a caller with a bearer token is who it
// is told to be.
type anyone struct{ identity string }

func (anyone) AuthenticatorType() string { return "anyone" }

func (a anyone) Authenticate(ctx security.AuthContext) (*security.Caller, error) {
	if _, err := security.ExtractBearerToken(ctx.GrpcContext); err != nil {
		return nil, err
	}
	return &security.Caller{AuthSource: security.AuthSourceIDToken, Identities: []string{a.identity}}, nil
}

// makeAuthority writes root, issuing CA and its key into dir, as operators give
// them to Istio, and returns a serving certificate.
func makeAuthority(dir string) (tls.Certificate, error) {
	root, err := newCert(nil, &x509.Certificate{Subject: pkix.Name{CommonName: "istio root"}, IsCA: true})
	if err != nil {
		return tls.Certificate{}, err
	}
	issuing, err := newCert(root, &x509.Certificate{Subject: pkix.Name{CommonName: "istio issuing CA"}, IsCA: true, MaxPathLenZero: true})
	if err != nil {
		return tls.Certificate{}, err
	}
	serving, err := newCert(issuing, &x509.Certificate{
		DNSNames: []string{"istiod.istio-system.svc"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return tls.Certificate{}, err
	}
	sec1, err := x509.MarshalECPrivateKey(issuing.key)
	if err != nil {
		return tls.Certificate{}, err
	}
	for name, b := range map[string][]byte{
		"bundle.pem": encode("CERTIFICATE", root.cert.Raw), "ca-cert.pem": encode("CERTIFICATE", issuing.cert.Raw),
		"cert-chain.pem": encode("CERTIFICATE", issuing.cert.Raw), "ca-key.pem": encode("EC PRIVATE KEY", sec1),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return tls.Certificate{}, err
		}
	}
	return tls.Certificate{Certificate: [][]byte{serving.cert.Raw, issuing.cert.Raw}, PrivateKey: crypto.PrivateKey(serving.key)}, nil
}

type keyed struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newCert completes the template; without a parent it signs itself.
func newCert(parent *keyed, t *x509.Certificate) (*keyed, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t.NotBefore, t.NotAfter = time.Now().Add(-time.Hour), time.Now().AddDate(0, 0, 365)
	t.SerialNumber, t.BasicConstraintsValid = big.NewInt(time.Now().UnixNano()), true
	t.KeyUsage = x509.KeyUsageDigitalSignature
	if t.IsCA {
		t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	by := &keyed{t, key}
	if parent != nil {
		by = parent
	}
	der, err := x509.CreateCertificate(rand.Reader, t, by.cert, key.Public(), by.key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &keyed{cert, key}, err
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
