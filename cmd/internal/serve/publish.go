package serve

import (
	"context"

	attestkube "github.com/hallmark-ca/hallmark/attest/kube"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/publish"
	"github.com/hallmark-ca/hallmark/ca/publish/kube"
	"github.com/hallmark-ca/hallmark/ca/rotate"
	"github.com/hallmark-ca/hallmark/cmd/internal/config"
)

// publishParts is where the bundle is published for those who do not answer. One
// that fails makes nothing else fail, and no server unready: a rotation waits for
// it, and metrics tell.
type publishParts struct {
	file     *publish.File
	endpoint *endpointDoor   // nil: off
	objects  *kube.Publisher // nil: off
}

func buildPublish(b *base, cfg *config.Config, authority *ca.Authority) (*publishParts, error) {
	p := &publishParts{}
	var err error
	if p.file, err = publish.NewFile(publish.FileConfig{
		Path: cfg.Bundle.File, Authority: authority, ReadWithin: cfg.Bundle.ReadWithin,
		Registerer: b.metrics, Log: b.log.With("part", "publish"), Now: b.now,
	}); err != nil {
		return nil, err
	}
	if cfg.Bundle.Endpoint != nil {
		if p.endpoint, err = buildEndpoint(b, cfg, authority); err != nil {
			return nil, err
		}
	}
	if o := cfg.Bundle.Objects; o != nil {
		rest, err := attestkube.RESTConfig(cfg.Attest.Kubeconfig)
		if err != nil {
			return nil, err
		}
		if p.objects, err = kube.New(kube.Config{
			REST: rest, Authority: authority, Namespace: o.LeaseNamespace, ReplicaID: cfg.ReplicaID,
			ConfigMap: o.ConfigMap, TrustBundle: o.TrustBundle, KubeletDelay: o.KubeletDelay, TakeOver: o.TakeOver,
			Registerer: b.metrics, Log: b.log.With("part", "bundle objects"), Now: b.now,
		}); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *publishParts) workers() []unit {
	all := []unit{{"bundle file", p.file.Run}}
	if p.objects != nil {
		all = append(all, unit{"bundle objects", p.objects.Run})
	}
	return all
}

func (p *publishParts) doors() []unit {
	if p.endpoint == nil {
		return nil
	}
	return []unit{{"bundle endpoint", p.endpoint.run}}
}

func (p *publishParts) report() []publish.Reader {
	all := p.file.Report()
	if p.endpoint != nil {
		all = append(all, p.endpoint.report()...)
	}
	if p.objects != nil {
		all = append(all, p.objects.Report()...)
	}
	return all
}

// behind counts the places, and those that do not hold the newest bundle, and
// says why of one.
func (p *publishParts) behind() (all, behind int, first string) {
	readers := p.report()
	for _, r := range readers {
		if r.Problem == "" {
			continue
		}
		if behind++; behind == 1 {
			first = r.Name + ": " + r.Problem
		}
	}
	return len(readers), behind, first
}

// places tells a rotation who reads where, and since when they hold the bundle
// of sequence.
func (p *publishParts) places(sequence uint64) []rotate.Place {
	var places []rotate.Place
	for _, reader := range p.report() {
		place := rotate.Place{Name: reader.Name, Why: reader.Problem}
		if reader.Sequence >= sequence {
			place.Held = reader.At
		}
		places = append(places, place)
	}
	return places
}

// findings probes what the publishers rest on.
func (p *publishParts) findings(ctx context.Context, running bool) []finding {
	var found []finding
	if p.endpoint != nil {
		found = append(found, p.endpoint.findings(ctx, running)...)
	}
	if p.objects != nil {
		for _, f := range p.objects.Probe(ctx) {
			found = append(found, finding{what: f.What, note: f.Note, err: f.Err, mend: f.Mend})
		}
	}
	return found
}
