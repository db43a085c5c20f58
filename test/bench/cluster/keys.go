package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// makeKeys writes the bench's authority, the API server's certificate from it,
// the administrator's kubeconfig, and the key of service-account tokens.
func (c *Cluster) makeKeys() error {
	ca, err := newAuthority()
	if err != nil {
		return fmt.Errorf("making the bench's authority: %w", err)
	}
	if err := c.write("ca.crt", ca.pem); err != nil {
		return err
	}
	crt, key, err := ca.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("issuing the API server's certificate: %w", err)
	}
	if err := c.write("api.crt", crt); err != nil {
		return err
	}
	if err := c.write("api.key", key); err != nil {
		return err
	}
	if c.Tokens, err = NewSigner(Issuer); err != nil {
		return err
	}
	pub, priv, err := c.Tokens.pem()
	if err != nil {
		return err
	}
	if err := c.write("sa.pub", pub); err != nil {
		return err
	}
	if err := c.write("sa.key", priv); err != nil {
		return err
	}
	return c.makeAdmin(ca)
}

func (c *Cluster) makeAdmin(ca *authority) error {
	crt, key, err := ca.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "bench-admin", Organization: []string{"system:masters"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return fmt.Errorf("issuing the administrator's certificate: %w", err)
	}
	c.rest = &rest.Config{
		Host: c.URL(), QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: ca.pem, CertData: crt, KeyData: key},
	}
	if c.client, err = kubernetes.NewForConfig(c.rest); err != nil {
		return fmt.Errorf("making the administrator's client: %w", err)
	}
	return c.writeKubeconfig(c.Kubeconfig(), &api.AuthInfo{ClientCertificateData: crt, ClientKeyData: key})
}

func (c *Cluster) writeKubeconfig(path string, who *api.AuthInfo) error {
	k := api.NewConfig()
	k.Clusters["bench"] = &api.Cluster{Server: c.URL(), CertificateAuthorityData: c.rest.CAData}
	k.AuthInfos["caller"] = who
	k.Contexts["bench"] = &api.Context{Cluster: "bench", AuthInfo: "caller"}
	k.CurrentContext = "bench"
	if err := clientcmd.WriteToFile(*k, path); err != nil {
		return fmt.Errorf("writing a kubeconfig: %w", err)
	}
	return nil
}

type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		Subject:      pkix.Name{CommonName: "bench authority"},
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(0, 0, 7),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}, nil
}

// issue completes the template and returns certificate and new key in PEM.
func (a *authority) issue(t *x509.Certificate) (crt, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	t.NotBefore, t.NotAfter = a.cert.NotBefore, a.cert.NotAfter
	t.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, k.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
}
