// Package zlint runs the RFC lints of github.com/zmap/zlint on a certificate:
// RFC 5280 and those that amend it on keys (RFC 3279, 5480, 8813). The lints of
// browsers and of the CA/Browser Forum are about the public web, and are
// neither run nor linked in.
//
// A run costs about as much as three signatures, so the authority asks for it
// once per shape of certificate under each issuer (ca.Config.LintShape), before
// the first of that shape is signed; ca/lint checks every one.
//
// This is the only package that links zlint. It keeps no state but the list of
// lints, and is safe for concurrent use.
package zlint

import (
	"errors"
	"fmt"
	"sync"

	"github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3/lint"
	_ "github.com/zmap/zlint/v3/lints/rfc" // registers the lints
)

var registry = sync.OnceValues(func() (lint.Registry, error) {
	return lint.GlobalRegistry().Filter(lint.FilterOptions{
		IncludeSources: lint.SourceList{lint.RFC5280, lint.RFC3279, lint.RFC5480, lint.RFC8813},
	})
})

// Check runs the lints on a certificate in DER; its signature is not looked at.
// The error lists all lints that found an error. Warnings are none: they are
// about what the RFC only recommends.
func Check(der []byte) error {
	lints, err := registry()
	if err != nil {
		return fmt.Errorf("linting certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("linting certificate: %w", err)
	}
	var found []error
	for _, l := range lints.CertificateLints().Lints() {
		result := l.Execute(cert, lints.GetConfiguration())
		if result.Status >= lint.Error {
			found = append(found, fmt.Errorf("%s (%s): %s %s", l.Name, l.Citation, l.Description, result.Details))
		}
	}
	if len(found) > 0 {
		return fmt.Errorf("linting certificate: %w", errors.Join(found...))
	}
	return nil
}
