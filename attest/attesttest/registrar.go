package attesttest

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
)

// NewRegistrar returns a registrar over one cluster, which is the local one,
// with six hours of staleness allowed.
func NewRegistrar(tb testing.TB, cluster attest.Cluster, gate attest.ImageGate, now func() time.Time) *attest.Registrar {
	tb.Helper()
	r, err := attest.NewRegistrar(attest.RegistrarConfig{
		Clusters:     map[string]attest.Cluster{ClusterID: cluster},
		Local:        ClusterID,
		Gate:         gate,
		MaxStaleness: 6 * time.Hour,
		Log:          slog.New(slog.DiscardHandler),
		Now:          now,
	})
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// Caller attests whoever shows token, and ends the test where that is refused.
func Caller(tb testing.TB, r *attest.Registrar, token string) attest.Caller {
	tb.Helper()
	caller, err := r.Attest(context.Background(), attest.Credential{Token: token})
	if err != nil {
		tb.Fatal(err)
	}
	return caller
}

// Grant attests whoever shows token and returns the grant of its own identity;
// it ends the test where either is refused.
func Grant(tb testing.TB, r *attest.Registrar, token string) *attest.Grant {
	tb.Helper()
	caller := Caller(tb, r, token)
	grant, err := r.Grant(context.Background(), caller, caller.Identity)
	if err != nil {
		tb.Fatal(err)
	}
	return grant
}

// Domain parses the name of a trust domain, and ends the test where it is none.
func Domain(tb testing.TB, name string) attest.TrustDomain {
	tb.Helper()
	td, err := attest.ParseTrustDomain(name)
	if err != nil {
		tb.Fatal(err)
	}
	return td
}
