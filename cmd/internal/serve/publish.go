package serve

import (
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/publish"
	"github.com/hallmark-ca/hallmark/ca/rotate"
	"github.com/hallmark-ca/hallmark/cmd/internal/config"
)

// publishParts is where the bundle is published for those who do not answer.
type publishParts struct {
	file *publish.File
}

func buildPublish(b *base, cfg *config.Config, authority *ca.Authority) (*publishParts, error) {
	file, err := publish.NewFile(publish.FileConfig{
		Path: cfg.Bundle.File, Authority: authority, ReadWithin: cfg.Bundle.ReadWithin,
		Registerer: b.metrics, Log: b.log.With("part", "publish"), Now: b.now,
	})
	if err != nil {
		return nil, err
	}
	return &publishParts{file: file}, nil
}

func (p *publishParts) units() []unit { return []unit{{"bundle file", p.file.Run}} }

// places tells a rotation who reads where, and since when they hold the bundle
// of sequence.
func (p *publishParts) places(sequence uint64) []rotate.Place {
	var places []rotate.Place
	for _, reader := range p.file.Report() {
		place := rotate.Place{Name: reader.Name, Why: reader.Problem}
		if reader.Sequence >= sequence {
			place.Held = reader.At
		}
		places = append(places, place)
	}
	return places
}
