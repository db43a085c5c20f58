package serve

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/ledger"
	"github.com/hallmark-ca/hallmark/cmd/internal/config"
	"github.com/hallmark-ca/hallmark/sds"
	"github.com/hallmark-ca/hallmark/sds/istioca"
	"github.com/hallmark-ca/hallmark/sds/proxies"
	"github.com/hallmark-ca/hallmark/sds/ra"
)

// doorParts is the mesh port with the protocols behind it.
type doorParts struct {
	listen  string
	serving *servingCertificate
	server  *ra.Server
	streams *sds.Server
	proxies *proxies.Proxies
	log     *slog.Logger
}

// healthEvery is how often the gRPC health service hears of readiness.
const healthEvery = time.Second

func buildDoors(b *base, cfg *config.Config, authority *authorityParts, registrar *attest.Registrar, serving *servingCertificate) (*doorParts, error) {
	log := b.log.With("part", "mesh")
	var refusals interface{ Refuse(ledger.Refusal) } = noLedger{}
	if authority.ledger != nil {
		refusals = authority.ledger
	}
	desk, err := ra.New(ra.Config{
		Registrar: registrar, Authority: authority.authority, Refusals: refusals, Refused: authority.census.Refused,
		Registerer: b.metrics, Log: log, Now: b.now,
	})
	if err != nil {
		return nil, err
	}
	d := &doorParts{listen: cfg.Mesh.Listen, serving: serving, log: log}
	if d.server, err = ra.NewServer(ra.ServerConfig{RA: desk, Certificate: serving.get, Registerer: b.metrics, Log: log, Now: b.now}); err != nil {
		return nil, err
	}
	if d.proxies, err = proxies.New(proxies.Config{
		RA: desk, Authority: authority.authority, Feed: b.feed, Census: authority.census,
		Registerer: b.metrics, Log: log, Now: b.now,
	}); err != nil {
		return nil, err
	}
	if d.streams, err = sds.New(sds.Config{Source: d.proxies, Registerer: b.metrics, Log: log, Now: b.now}); err != nil {
		return nil, err
	}
	istio, err := istioca.New(istioca.Config{RA: desk, Registerer: b.metrics})
	if err != nil {
		return nil, err
	}
	d.streams.Register(d.server.Registrar())
	istio.Register(d.server.Registrar())
	return d, nil
}

// run opens the mesh port once there is a certificate to show on it.
func (d *doorParts) run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-d.serving.first:
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", d.listen)
	if err != nil {
		return fmt.Errorf("listening for proxies: %w", err)
	}
	d.log.Info("serving proxies", "address", listener.Addr().String())
	return d.server.Run(ctx, listener)
}

// health tells the gRPC health service what readiness says.
func (d *doorParts) health(conditions []condition) func(context.Context) error {
	return func(ctx context.Context) error {
		tick := time.NewTicker(healthEvery)
		defer tick.Stop()
		for {
			_, ready := readiness(conditions)
			d.server.SetReady(ready)
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	}
}
