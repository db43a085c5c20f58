package envoy

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// ErrNoIdentity says that an Envoy has no certificate yet.
var ErrNoIdentity = errors.New("the Envoy has no identity")

// Identity is the certificate that an Envoy presents: what `default` holds now.
type Identity struct {
	ID    string            // the leaf's SPIFFE ID
	Leaf  *x509.Certificate // serial, validity and issuer stand in it
	Chain []*x509.Certificate
}

// Serial is the leaf's serial number in lower-case hex, as in the ledger.
func (i Identity) Serial() string { return i.Leaf.SerialNumber.Text(16) }

// Identity returns what the Envoy presents, or [ErrNoIdentity]. It reads the
// secret that was accepted, and that a TLS context has loaded the very
// certificate.
func (e *Envoy) Identity(ctx context.Context) (Identity, error) {
	chain, err := e.secret(ctx, "default", func(s secret) []byte { return s.TLS.Chain.Inline })
	if err != nil {
		return Identity{}, err
	}
	leaf := chain[0]
	if len(leaf.URIs) != 1 {
		return Identity{}, fmt.Errorf("reading an Envoy's identity: its leaf has %d URIs", len(leaf.URIs))
	}
	id := Identity{ID: leaf.URIs[0].String(), Leaf: leaf, Chain: chain}
	loaded, err := e.loaded(ctx)
	if err != nil {
		return Identity{}, err
	}
	if !loaded[id.Serial()] {
		return Identity{}, fmt.Errorf("%w: it was sent, but is in no TLS context yet", ErrNoIdentity)
	}
	return id, nil
}

// Roots returns the certificates that the Envoy verifies its peers with.
func (e *Envoy) Roots(ctx context.Context) ([]*x509.Certificate, error) {
	return e.secret(ctx, "ROOTCA", func(s secret) []byte {
		if c := s.Validation.Custom.Typed; len(c.TrustDomains) == 1 {
			return c.TrustDomains[0].Bundle.Inline
		}
		return s.Validation.CA.Inline
	})
}

// AwaitIdentity waits until the Envoy has an identity and serves.
func (e *Envoy) AwaitIdentity(ctx context.Context) (Identity, error) {
	var id Identity
	err := e.Await(ctx, func(ctx context.Context) error {
		var err error
		if id, err = e.Identity(ctx); err != nil {
			return err
		}
		state, err := e.State(ctx)
		if err == nil && state != "LIVE" {
			err = fmt.Errorf("it is %s", state)
		}
		return err
	})
	return id, err
}

// AwaitAnother waits until the Envoy presents another certificate than the one
// given.
func (e *Envoy) AwaitAnother(ctx context.Context, last Identity) (Identity, error) {
	var id Identity
	err := e.Await(ctx, func(ctx context.Context) error {
		var err error
		if id, err = e.Identity(ctx); err == nil && id.Serial() == last.Serial() {
			err = errors.New("it still has the certificate of before")
		}
		return err
	})
	return id, err
}

// State is LIVE, PRE_INITIALIZING (it waits for its identity) and so on.
func (e *Envoy) State(ctx context.Context) (string, error) {
	b, err := e.Admin(ctx, "/server_info")
	if err != nil {
		return "", fmt.Errorf("reading an Envoy's state: %w", err)
	}
	var info struct {
		State string `json:"state"`
	}
	if err := json.Unmarshal(b, &info); err != nil {
		return "", fmt.Errorf("reading an Envoy's state: %w", err)
	}
	return info.State, nil
}

// secret is an SDS secret as the configuration dump shows it.
type secret struct {
	TLS struct {
		Chain inline `json:"certificate_chain"`
	} `json:"tls_certificate"`
	Validation struct {
		CA     inline `json:"trusted_ca"`
		Custom struct {
			Typed struct {
				TrustDomains []struct {
					Bundle inline `json:"trust_bundle"`
				} `json:"trust_domains"`
			} `json:"typed_config"`
		} `json:"custom_validator_config"`
	} `json:"validation_context"`
}

type inline struct {
	Inline []byte `json:"inline_bytes"`
}

// secret returns the certificates of an accepted secret. Envoy lists one for
// each subscription of the name; they must be equal.
func (e *Envoy) secret(ctx context.Context, name string, content func(secret) []byte) ([]*x509.Certificate, error) {
	b, err := e.Admin(ctx, "/config_dump?resource=dynamic_active_secrets")
	if err != nil {
		return nil, fmt.Errorf("reading an Envoy's secrets: %w", err)
	}
	var dump struct {
		Configs []struct {
			Name   string `json:"name"`
			Secret secret `json:"secret"`
		} `json:"configs"`
	}
	if err := json.Unmarshal(b, &dump); err != nil {
		return nil, fmt.Errorf("reading an Envoy's secrets: %w", err)
	}
	var found []byte
	for _, c := range dump.Configs {
		if c.Name != name {
			continue
		}
		pemBytes := content(c.Secret)
		if found != nil && string(found) != string(pemBytes) {
			return nil, fmt.Errorf("%w: its subscriptions of %s differ", ErrNoIdentity, name)
		}
		found = pemBytes
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: no secret %s", ErrNoIdentity, name)
	}
	return parse(found)
}

func parse(pemBytes []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for block, rest := pem.Decode(pemBytes); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading an Envoy's certificates: %w", err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("reading an Envoy's certificates: there is none")
	}
	return certs, nil
}

// loaded returns the serial numbers of the certificates that TLS contexts
// present.
func (e *Envoy) loaded(ctx context.Context) (map[string]bool, error) {
	b, err := e.Admin(ctx, "/certs")
	if err != nil {
		return nil, fmt.Errorf("reading an Envoy's certificates: %w", err)
	}
	var certs struct {
		Certificates []struct {
			Chain []struct {
				Serial string `json:"serial_number"`
			} `json:"cert_chain"`
		} `json:"certificates"`
	}
	if err := json.Unmarshal(b, &certs); err != nil {
		return nil, fmt.Errorf("reading an Envoy's certificates: %w", err)
	}
	serials := map[string]bool{}
	for _, c := range certs.Certificates {
		for _, link := range c.Chain {
			serials[strings.TrimLeft(strings.ToLower(link.Serial), "0")] = true
		}
	}
	return serials, nil
}
