package serve

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/publish"
	"github.com/hallmark-ca/hallmark/cmd/internal/config"
)

// NewLog is the server's own log.
func NewLog(w io.Writer) *slog.Logger { return newLog(w, slog.LevelDebug) }

// Unit is one part of a server.
type Unit = unit

// MakeUnit names a part.
func MakeUnit(name string, run func(context.Context) error) Unit { return unit{name, run} }

// RunUnits runs a server of these parts.
func RunUnits(ctx context.Context, doors, workers, ledger []Unit) error {
	g := &graph{base: testBase(time.Now), doors: doors, workers: workers, ledger: ledger}
	return g.run(ctx)
}

func testBase(now func() time.Time) *base {
	return &base{log: slog.New(slog.DiscardHandler), metrics: prometheus.NewRegistry(), feed: &attest.Feed{}, now: now}
}

// Condition names what readiness asks.
func Condition(name string, ready func() error) condition { return condition{name, ready} }

// Admin is the handler of metrics and health.
func Admin(conditions ...condition) http.Handler {
	return buildMetrics(testBase(time.Now), &config.Config{}, conditions).server.Handler
}

// Serving keeps our own certificate fresh.
type Serving = servingCertificate

// NewServing makes one for names of our own.
func NewServing(authority *ca.Authority, names []string, now func() time.Time) (*Serving, error) {
	return newServingCertificate(testBase(now), authority, config.Mesh{Names: names})
}

// Run, Get, Ready and First are the certificate's own.
func (s *Serving) Run(ctx context.Context) error { return s.run(ctx) }

// First is closed when there is a certificate.
func (s *Serving) First() <-chan struct{} { return s.first }

// Ready tells whether there is one that can be shown.
func (s *Serving) Ready() error { return s.ready() }

// Serial is that of the certificate that is shown now.
func (s *Serving) Serial() string {
	cert, err := s.get(nil)
	if err != nil {
		return ""
	}
	return cert.Leaf.SerialNumber.Text(16)
}

// EndpointDoor is the port of the bundle endpoint.
type EndpointDoor = endpointDoor

// NewEndpointDoor makes one that looks at its certificate as often as given.
func NewEndpointDoor(authority *ca.Authority, cfg *config.Config, now func() time.Time, look time.Duration) (*EndpointDoor, error) {
	d, err := buildEndpoint(testBase(now), cfg, authority)
	if err == nil {
		d.look = look
	}
	return d, err
}

// Run keeps the port open until ctx ends.
func (d *EndpointDoor) Run(ctx context.Context) error { return d.run(ctx) }

// Report tells what its readers hold.
func (d *EndpointDoor) Report() []publish.Reader { return d.report() }

// Findings are those of a check beside no server, by what was looked at.
func (d *EndpointDoor) Findings(ctx context.Context) map[string]error {
	out := map[string]error{}
	for _, f := range d.findings(ctx, false) {
		out[f.what] = f.err
	}
	return out
}
