package serve

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/publish"
	"github.com/hallmark-ca/hallmark/cmd/internal/config"
)

const (
	endpointRetryFirst = time.Second
	endpointRetryLast  = time.Minute
	endpointLook       = 10 * time.Second
)

// endpointDoor is the port of the bundle endpoint. What keeps it shut (an address
// in use, a certificate that has ended or is not there yet) is tried again until
// it goes, and stops nothing else; meanwhile nobody counts as having read.
type endpointDoor struct {
	cfg         config.Endpoint
	trustDomain attest.TrustDomain
	endpoint    *publish.Endpoint
	log         *slog.Logger
	now         func() time.Time
	look        time.Duration // between two looks at the certificate's end

	mu      sync.Mutex // guards all below
	since   time.Time  // from when on it is open without a break; zero: it is shut
	problem string     // why it is shut
}

func buildEndpoint(b *base, cfg *config.Config, authority *ca.Authority) (*endpointDoor, error) {
	d := &endpointDoor{
		cfg: *cfg.Bundle.Endpoint, trustDomain: cfg.TrustDomain, log: b.log.With("part", "bundle endpoint"), now: b.now, look: endpointLook,
		problem: "it is not open yet",
	}
	var err error
	if d.endpoint, err = publish.NewEndpoint(publish.EndpointConfig{
		Authority: authority, RefreshHint: d.cfg.RefreshHint, Registerer: b.metrics, Log: d.log, Now: b.now,
	}); err != nil {
		return nil, err
	}
	open := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hallmark_bundle_endpoint_open", Help: "1 while the bundle endpoint can be read, else 0.",
	}, func() float64 {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.since.IsZero() {
			return 0
		}
		return 1
	})
	if err := b.metrics.Register(open); err != nil {
		return nil, fmt.Errorf("making bundle endpoint: %w", err)
	}
	return d, nil
}

// run keeps the port open until ctx ends.
func (d *endpointDoor) run(ctx context.Context) error {
	pause := endpointRetryFirst
	for ctx.Err() == nil {
		began := d.now()
		err := d.serve(ctx)
		if d.now().Sub(began) > endpointRetryLast {
			pause = endpointRetryFirst // it was open
		}
		if err != nil && ctx.Err() == nil {
			d.shut(err)
			d.log.Error("the bundle endpoint is shut", "error", err, "retryIn", pause.String())
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, endpointRetryLast)
	}
	return nil
}

// serve opens the port and returns when it is shut, nil only after ctx has ended.
func (d *endpointDoor) serve(ctx context.Context) error {
	files, err := publish.OpenCertificate(d.cfg.CertificateFile, d.cfg.KeyFile, d.log, d.now)
	if err != nil {
		return err
	}
	server, err := publish.NewServer(publish.ServerConfig{
		Handler: d.endpoint, Profile: publish.WebPKI, TrustDomain: d.trustDomain, Certificate: files.Get, Log: d.log,
	})
	if err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", d.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listening for readers of the bundle: %w", err)
	}
	d.open()
	d.log.Info("serving the bundle endpoint", "address", listener.Addr().String())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return server.Run(ctx, listener) })
	group.Go(func() error { return d.valid(ctx, files) })
	return group.Wait()
}

// valid returns an error once the certificate has ended: no reader takes it.
func (d *endpointDoor) valid(ctx context.Context, files *publish.CertificateFiles) error {
	tick := time.NewTicker(d.look)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		cert, err := files.Get(nil)
		if err != nil {
			return err
		}
		if err := ended(cert, d.now()); err != nil {
			return err
		}
	}
}

func ended(cert *tls.Certificate, now time.Time) error {
	if cert.Leaf.NotAfter.After(now) {
		return nil
	}
	return fmt.Errorf("its certificate ended at %s, and there is no newer one", cert.Leaf.NotAfter.Format(time.RFC3339))
}

func (d *endpointDoor) open() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.since, d.problem = d.now(), ""
}

func (d *endpointDoor) shut(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.since, d.problem = time.Time{}, "it is shut: "+err.Error()
}

// report tells what the readers hold: of a document that nobody can fetch, they
// hold nothing.
func (d *endpointDoor) report() []publish.Reader {
	all := d.endpoint.Report()
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range all {
		r := &all[i]
		if d.since.IsZero() {
			r.Sequence, r.At, r.Problem = 0, time.Time{}, d.problem
			continue
		}
		if from := d.since.Add(publish.Hints * d.cfg.RefreshHint); r.Sequence != 0 && r.At.Before(from) {
			r.At = from
		}
	}
	return all
}

// findings looks at the certificate, and at the address unless a server holds it.
func (d *endpointDoor) findings(ctx context.Context, running bool) []finding {
	f := finding{what: "bundle.endpoint.certificateFile"}
	files, err := publish.OpenCertificate(d.cfg.CertificateFile, d.cfg.KeyFile, slog.New(slog.DiscardHandler), d.now)
	if err == nil {
		var cert *tls.Certificate
		if cert, err = files.Get(nil); err == nil {
			f.note = "matches its key, until " + cert.Leaf.NotAfter.Format(time.RFC3339)
		}
	}
	if err != nil {
		f.err, f.mend = err, "put certificate and key, in PEM and a pair, where the configuration says, readable by the account that hallmark runs as"
	}
	found := []finding{f}
	if !running {
		found = append(found, probeListen(ctx, "bundle.endpoint.listen", d.cfg.Listen))
	}
	return found
}
