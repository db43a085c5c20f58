package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
)

// Signer signs service-account tokens as an API server does: ES256, the key id
// being the SHA-256 of the public key. [NewSigner] makes that of a cluster
// which nobody knows.
type Signer struct {
	Issuer string

	key    *ecdsa.PrivateKey
	signer jose.Signer
}

// NewSigner makes a key.
func NewSigner(issuer string) (*Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key for tokens: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("making a key for tokens: %w", err)
	}
	id := sha256.Sum256(spki)
	jwk := jose.JSONWebKey{Key: key, KeyID: base64.RawURLEncoding.EncodeToString(id[:]), Algorithm: string(jose.ES256)}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jwk}, nil)
	if err != nil {
		return nil, fmt.Errorf("making a key for tokens: %w", err)
	}
	return &Signer{Issuer: issuer, key: key, signer: s}, nil
}

// Public is the key that verifies the tokens.
func (s *Signer) Public() *ecdsa.PublicKey { return &s.key.PublicKey }

func (s *Signer) pem() (public, private []byte, err error) {
	spki, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		return nil, nil, err
	}
	sec1, err := x509.MarshalECPrivateKey(s.key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}), nil
}

// Ref names an object as tokens do.
type Ref struct {
	Name string `json:"name,omitempty"`
	UID  string `json:"uid,omitempty"`
}

// Claims are those of a service-account token. What is nil is left out: a
// token without Pod is unbound.
type Claims struct {
	Namespace string
	Account   Ref
	Pod, Node *Ref
	Audiences []string
	IssuedAt  time.Time // also "not before"
	Expires   time.Time
	ID        string // jti; "": a random one
}

// ClaimsOf are the claims that TokenRequest gives for a pod; node may be nil.
func ClaimsOf(pod *corev1.Pod, account *corev1.ServiceAccount, node *corev1.Node, audience string, issued time.Time, life time.Duration) Claims {
	c := Claims{
		Namespace: account.Namespace,
		Account:   Ref{account.Name, string(account.UID)},
		Pod:       &Ref{pod.Name, string(pod.UID)},
		Audiences: []string{audience},
		IssuedAt:  issued, Expires: issued.Add(life),
	}
	if node != nil {
		c.Node = &Ref{node.Name, string(node.UID)}
	}
	return c
}

// Sign returns the token.
func (s *Signer) Sign(c Claims) (string, error) {
	id := c.ID
	if id == "" {
		id = uuid.NewString()
	}
	private := struct {
		Kubernetes kubernetesClaims `json:"kubernetes.io"`
	}{kubernetesClaims{Namespace: c.Namespace, Node: c.Node, Pod: c.Pod, Account: c.Account}}
	token, err := jwt.Signed(s.signer).Claims(jwt.Claims{
		Issuer:    s.Issuer,
		Subject:   "system:serviceaccount:" + c.Namespace + ":" + c.Account.Name,
		Audience:  c.Audiences,
		Expiry:    jwt.NewNumericDate(c.Expires),
		NotBefore: jwt.NewNumericDate(c.IssuedAt),
		IssuedAt:  jwt.NewNumericDate(c.IssuedAt),
		ID:        id,
	}).Claims(private).Serialize()
	if err != nil {
		return "", fmt.Errorf("signing a token: %w", err)
	}
	return token, nil
}

type kubernetesClaims struct {
	Namespace string `json:"namespace,omitempty"`
	Node      *Ref   `json:"node,omitempty"`
	Pod       *Ref   `json:"pod,omitempty"`
	Account   Ref    `json:"serviceaccount"`
}
