package publish

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"
)

const (
	certificateCheck = 30 * time.Second
	maxCertificate   = 256 << 10 // of each file
)

// CertificateFiles is a certificate from two files, as other tools renew them:
// a change is taken in within 30 s, and a pair that does not match, such as one
// that is half written, leaves the last good one in use.
type CertificateFiles struct {
	certificate, key string
	log              *slog.Logger
	now              func() time.Time

	mu      sync.Mutex // guards all below; held across the reading of the files
	current *tls.Certificate
	bytes   [2][]byte
	looked  time.Time
}

// OpenCertificate reads a chain and a key in PEM, which have to be a pair.
func OpenCertificate(certificate, key string, log *slog.Logger, now func() time.Time) (*CertificateFiles, error) {
	c := &CertificateFiles{certificate: certificate, key: key, log: log, now: now}
	if err := c.read(); err != nil {
		return nil, err
	}
	c.looked = now()
	return c, nil
}

// Get is for [ServerConfig.Certificate].
func (c *CertificateFiles) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); now.Sub(c.looked) >= certificateCheck {
		c.looked = now
		if err := c.read(); err != nil {
			c.log.Error("the certificate of the public port cannot be read anew; the last one stays in use", "error", err, "notAfter", c.current.Leaf.NotAfter)
		}
	}
	return c.current, nil
}

func (c *CertificateFiles) read() error {
	var both [2][]byte
	for i, name := range []string{c.certificate, c.key} {
		var err error
		if both[i], err = readSmall(name); err != nil {
			return fmt.Errorf("reading certificate: %w", err)
		}
	}
	if c.current != nil && bytes.Equal(both[0], c.bytes[0]) && bytes.Equal(both[1], c.bytes[1]) {
		return nil
	}
	pair, err := tls.X509KeyPair(both[0], both[1])
	if err != nil {
		return fmt.Errorf("reading certificate %s with key %s: %w", c.certificate, c.key, err)
	}
	if !pair.Leaf.NotAfter.After(c.now()) {
		return fmt.Errorf("reading certificate %s: it ended at %s", c.certificate, pair.Leaf.NotAfter.Format(time.RFC3339))
	}
	c.current, c.bytes = &pair, both
	return nil
}

func readSmall(name string) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxCertificate+1))
	if err == nil && len(data) > maxCertificate {
		err = errors.New(name + " is larger than a certificate can be")
	}
	return data, err
}
