package serve

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hallmark-ca/hallmark/cmd/internal/config"
	"github.com/hallmark-ca/hallmark/cmd/internal/state"
	"github.com/hallmark-ca/hallmark/signing"
	"github.com/hallmark-ca/hallmark/signing/evidence"
	"github.com/hallmark-ca/hallmark/signing/policy"
	"github.com/hallmark-ca/hallmark/signing/registry"
)

// Bounds of the evidence on disk. An image with one signature takes some ten
// kilobytes; no image takes more than ten megabytes.
const (
	evidenceKeep  = 24 * time.Hour // after the last pod that ran the image
	evidenceBytes = 2 << 30
)

// imageParts is what decides whether images may run.
type imageParts struct {
	policies *policy.Directory // nil where no folder is configured
	store    *evidence.Store
	gate     *signing.Gate
}

func buildImages(b *base, cfg *config.Config) (*imageParts, error) {
	log := b.log.With("part", "images")
	p := &imageParts{}
	current := func() *policy.Set { return none }
	var err error
	if cfg.Images.Policies != "" {
		if p.policies, err = policy.OpenDirectory(policy.DirectoryConfig{Dir: cfg.Images.Policies, Registerer: b.metrics, Log: log}); err != nil {
			return nil, &partError{"image policies", "images.policies", "name a folder that this account can read", err}
		}
		current = p.policies.Set
	}
	if p.store, err = evidence.NewStore(evidence.StoreConfig{
		Dir: b.dir.Path(state.Evidence), Keep: evidenceKeep, MaxBytes: evidenceBytes,
		Registerer: b.metrics, Log: log, Now: b.now,
	}); err != nil {
		return nil, &partError{"image evidence", "state", "let this account read and write " + b.dir.Path(state.Evidence) + "; what is in it can be removed, and is fetched again", err}
	}
	client, err := registry.New(registry.Config{
		Insecure: cfg.Images.Insecure, AllowPrivate: cfg.Images.AllowPrivate, CAFiles: cfg.Images.CAFiles,
		DockerConfig: cfg.Images.DockerConfig, Registerer: b.metrics, Log: log, Now: b.now,
	})
	if err != nil {
		return nil, registryError(&cfg.Images, err)
	}
	if p.gate, err = signing.NewGate(signing.Config{
		Mode: cfg.Images.Issuance, Namespaces: cfg.Images.Namespaces,
		Infrastructure: cfg.Images.Infrastructure, Accounts: cfg.Images.Accounts,
		ResolveTags: cfg.Images.ResolveTags, CountEphemeral: cfg.Images.CountEphemeral,
		Policies: current, Collector: client, Store: p.store, Feed: b.feed,
		Registerer: b.metrics, Log: log, Now: b.now,
	}); err != nil {
		return nil, fmt.Errorf("putting the image gate together: %w", err)
	}
	if p.policies != nil {
		p.policies.Subscribe(p.gate.Reconsider)
		empty := func() {
			if len(p.policies.Set().Policies()) == 0 && enforced(&cfg.Images) {
				log.Error("there is no image policy, and the image gate enforces: every pod is refused", "dir", cfg.Images.Policies, "mend", emptyMend)
			}
		}
		p.policies.Subscribe(empty)
		empty()
	}
	return p, nil
}

const emptyMend = "put ClusterImagePolicy files into the folder of images.policies, or write audit until they are there"

// enforced tells whether the gate refuses anywhere. The mesh's own pods do not
// count: they are few, and named.
func enforced(cfg *config.Images) bool {
	return cfg.Issuance == signing.Enforce || slices.Contains(slices.Collect(maps.Values(cfg.Namespaces)), signing.Enforce)
}

// none is the set of no policies.
var none = policy.Compile(nil)

func (p *imageParts) units() []unit {
	units := []unit{{"image gate", p.gate.Run}, {"image evidence", p.store.Run}}
	if p.policies != nil {
		units = append(units, unit{"image policies", p.policies.Run})
	}
	return units
}

// problems are the policies' that deny what they name.
func (p *imageParts) problems() []policy.Problem {
	if p.policies == nil {
		return nil
	}
	return slices.DeleteFunc(p.policies.Problems(), func(problem policy.Problem) bool { return problem.Warning })
}

// findings says what is wrong with the policies. A policy that cannot be used is
// a finding: it denies the images that it names.
func (p *imageParts) findings(cfg *config.Config) []finding {
	const what = "image policies"
	if p.policies == nil {
		return []finding{{what: what, note: fmt.Sprintf("no folder is configured; the image gate is %s", cfg.Images.Issuance)}}
	}
	var found []finding
	for _, problem := range p.policies.Problems() {
		f := finding{what: what, mend: problem.Mend}
		problem.Mend = "" // it has a line of its own
		if problem.Warning {
			f.warn = problem.String()
		} else {
			f.err = fmt.Errorf("%s; it denies what it names", problem)
		}
		found = append(found, f)
	}
	if len(p.policies.Set().Policies()) == 0 && enforced(&cfg.Images) {
		found = append(found, finding{what: what, err: fmt.Errorf("there is none in %s, and images.issuance enforces: every pod is refused", cfg.Images.Policies), mend: emptyMend})
	}
	if len(found) == 0 {
		found = append(found, finding{what: what, note: fmt.Sprintf("%d in %s, all usable; the image gate is %s", len(p.policies.Set().Policies()), cfg.Images.Policies, cfg.Images.Issuance)})
	}
	return found
}
