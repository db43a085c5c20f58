package ca

import (
	"crypto"
	"errors"
	"time"

	"github.com/hallmark-ca/hallmark/ca/profile"
)

// ParseCSR reads a request as CheckCSR does, but for its signature, which a
// mutated request cannot have.
func ParseCSR(der []byte) (key []byte, uris int, uri string, err error) {
	req, err := parseCSR(der)
	if err != nil {
		return nil, 0, "", err
	}
	if _, ok := requestHashes[string(req.algorithm)]; !ok {
		return nil, 0, "", errors.New("unknown signature algorithm")
	}
	return req.key, req.uris, string(req.uri), nil
}

// SignTwice signs the bytes of a leaf twice, as no caller can.
func SignTwice(s *Snapshot, pub crypto.PublicKey, now time.Time) (first, second error) {
	key, err := encodeKey(pub, nil)
	if err != nil {
		return err, err
	}
	serial, _ := newSerial()
	cert := &profile.Certificate{Serial: serial, Subject: profile.EmptyName, DNS: []string{"a.example"}}
	now = now.UTC().Truncate(time.Second)
	fillLeaf(s, key, profile.Validity{NotBefore: now, Issued: now, NotAfter: now.Add(time.Hour)}, cert)
	ready, err := prepare(cert, s.algorithm)
	if err != nil {
		return err, err
	}
	_, first = ready.sign(s.signer)
	_, second = ready.sign(s.signer)
	return first, second
}
