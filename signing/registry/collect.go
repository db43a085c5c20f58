package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing/evidence"
)

const (
	bundlePrefix  = "application/vnd.dev.sigstore.bundle"
	simpleType    = "application/vnd.dev.cosign.simplesigning.v1+json"
	predicateNote = "dev.sigstore.bundle.predicateType"
	signPredicate = "https://sigstore.dev/cosign/sign/v1"
)

// collection is one run of Collect.
type collection struct {
	client *Client
	target target

	mu sync.Mutex // guards e's Skipped, Incomplete and Manifests
	e  *evidence.Evidence
}

// Collect fetches the subject's manifest, its children's where it is an index,
// and every signature that is attached to its digest: bundles listed by the
// referrers API or at the fallback tag, and layers at the legacy tag. An image
// without signatures is no error.
//
// It asks in three rounds, each parallel: what there is, the manifests of what
// was found, their content. Errors are [*attest.DenyError] of ImageNotFound,
// RegistryAway or ImageReferenceInvalid. What failed on the way, once the
// subject's manifest was there, is named in Skipped; where the registry was at
// fault the evidence is Incomplete, and if it then holds no signature at all
// there is no evidence but RegistryAway.
func (c *Client) Collect(ctx context.Context, s evidence.Subject) (*evidence.Evidence, error) {
	t, err := c.parse(s.String())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	began := time.Now() // a duration, on the monotonic clock
	col := &collection{client: c, target: t, e: &evidence.Evidence{
		Subject:   evidence.Subject{Repository: t.repo.Name(), Digest: t.digest},
		Manifests: map[string][]byte{},
		Collected: c.cfg.Now(),
	}}
	outcome := "complete"
	err = col.run(ctx)
	switch {
	case err != nil:
		outcome = "refused"
	case col.e.Incomplete:
		outcome = "incomplete"
	}
	c.m.collections.WithLabelValues(outcome).Observe(time.Since(began).Seconds())
	if err != nil {
		return nil, err
	}
	c.cfg.Log.Debug("collected evidence", "image", col.e.Subject.String(),
		"signatures", len(col.e.Signatures), "skipped", len(col.e.Skipped), "incomplete", col.e.Incomplete)
	return col.e, nil
}

func (c *collection) run(ctx context.Context) error {
	if _, err := c.client.session(ctx, c.target.repo); err != nil { // once, before many need it
		return away(c.e.Subject.String(), err)
	}
	found, err := c.look(ctx)
	if err != nil {
		return denial(c.e.Subject.String(), err)
	}
	subject, err := evidence.ParseManifest(c.e.Manifests[c.target.digest])
	if err != nil {
		return attest.Deny(attest.ImageNotFound, c.e.Subject.String(), "what the registry has there is no image: %v", err)
	}
	legacy := c.legacyLayers(found.legacy)
	candidates := c.candidates(found)

	bundles := make([]*evidence.Descriptor, len(candidates))
	payloads := map[string][]byte{}
	var mu sync.Mutex // guards payloads
	var g errgroup.Group
	g.SetLimit(parallel)
	for i, d := range candidates {
		g.Go(c.remarked("referrer "+d.Digest, func() { bundles[i] = c.bundleLayer(ctx, d) }))
	}
	for digest, d := range distinct(legacy) {
		source := "legacy signature " + digest
		g.Go(c.remarked(source, func() {
			if b := c.blob(ctx, source, d, evidence.MaxPayload); b != nil {
				mu.Lock()
				defer mu.Unlock()
				payloads[digest] = b
			}
		}))
	}
	for _, d := range c.children(subject) {
		g.Go(c.remarked("child "+d.Digest, func() { c.child(ctx, d) }))
	}
	_ = g.Wait() // none of them returns an error: what fails is a remark

	c.fetchBundles(ctx, candidates, bundles)
	c.addLegacy(legacy, payloads)
	return c.finish()
}

// finish proves to ourselves what was collected.
func (c *collection) finish() error {
	if c.e.Incomplete && len(c.e.Signatures) == 0 {
		return attest.Deny(attest.RegistryAway, c.e.Subject.String(), "%s", strings.Join(c.e.Skipped, "; "))
	}
	if err := c.e.Check(); err != nil {
		return fmt.Errorf("collecting evidence: %w", err)
	}
	return nil
}

// listing is what the first round found.
type listing struct {
	api, fallback []evidence.Descriptor
	legacy        *evidence.Manifest
}

// look is the first round. Only the subject's own manifest must be there.
func (c *collection) look(ctx context.Context) (listing, error) {
	var l listing
	g, ctx := errgroup.WithContext(ctx)
	g.Go(c.client.guarded(func() error {
		raw, err := c.client.getDigest(ctx, c.target, "manifests", c.target.digest, evidence.MaxManifest)
		if err != nil {
			return err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.e.Manifests[c.target.digest] = raw
		return nil
	}))
	g.Go(c.remarked("referrers", func() { l.api = c.referrers(ctx) }))
	tag := strings.Replace(c.target.digest, ":", "-", 1)
	g.Go(c.remarked("tag "+tag, func() {
		if m := c.tagged(ctx, tag); m != nil {
			l.fallback = m.Children
		}
	}))
	g.Go(c.remarked("tag "+tag+".sig", func() { l.legacy = c.tagged(ctx, tag+".sig") }))
	return l, g.Wait()
}

// tagged fetches a manifest by tag, nil where there is none.
func (c *collection) tagged(ctx context.Context, tag string) *evidence.Manifest {
	ctx, cancel := context.WithTimeout(ctx, partTimeout)
	defer cancel()
	raw, err := c.client.getTag(ctx, c.target, tag, evidence.MaxManifest)
	var status *statusError
	if errors.As(err, &status) && status.missing() {
		return nil
	}
	var m *evidence.Manifest
	if err == nil {
		if m, err = evidence.ParseManifest(raw); err != nil {
			err = contentError{err}
		}
	}
	if err != nil {
		c.skip("tag "+tag, err)
		return nil
	}
	return m
}

// candidates orders what may be bundles: first what says that it is a
// signature, then what does not say, last attestations. What is said there is
// said by whoever pushed, so it decides the order alone.
func (c *collection) candidates(l listing) []evidence.Descriptor {
	var ranked [3][]evidence.Descriptor
	seen := map[string]bool{}
	for _, d := range slices.Concat(l.api, l.fallback) {
		if seen[d.Digest] {
			continue
		}
		seen[d.Digest] = true
		if !strings.HasPrefix(d.ArtifactType, bundlePrefix) && !undeclared(d.ArtifactType) {
			continue // an SBOM, a Helm chart: not ours
		}
		if !evidence.ValidDigest(d.Digest) {
			c.skip("referrer "+d.Digest, contentError{errors.New("its digest is no sha256 digest")})
			continue
		}
		switch note := d.Annotations[predicateNote]; {
		case note == signPredicate:
			ranked[0] = append(ranked[0], d)
		case note == "":
			ranked[1] = append(ranked[1], d)
		default:
			ranked[2] = append(ranked[2], d)
		}
	}
	all := slices.Concat(ranked[0], ranked[1], ranked[2])
	if len(all) > maxReferrers {
		c.skip("referrers", contentError{fmt.Errorf("%d are attached, the last %d were not looked at", len(all), len(all)-maxReferrers)})
		all = all[:maxReferrers]
	}
	return all
}

// undeclared tells whether a descriptor leaves open what it names: cosign's
// index at the fallback tag does, and some registries give the configuration's
// type where the manifest has its own.
func undeclared(artifactType string) bool {
	switch artifactType {
	case "", "application/vnd.oci.empty.v1+json", "application/vnd.oci.image.config.v1+json":
		return true
	}
	return false
}

// bundleLayer looks into a referrer's manifest for a bundle; nil where it has
// none.
func (c *collection) bundleLayer(ctx context.Context, d evidence.Descriptor) *evidence.Descriptor {
	declared := strings.HasPrefix(d.ArtifactType, bundlePrefix)
	ctx, cancel := context.WithTimeout(ctx, partTimeout)
	defer cancel()
	m, err := c.manifest(ctx, d)
	if err != nil {
		c.skip("referrer "+d.Digest, err)
		return nil
	}
	var layers []evidence.Descriptor
	for _, l := range m.Layers {
		if strings.HasPrefix(l.MediaType, bundlePrefix) {
			layers = append(layers, l)
		}
	}
	switch {
	case len(layers) == 1 && evidence.ValidDigest(layers[0].Digest):
		return &layers[0]
	case len(layers) == 0 && !declared && !strings.HasPrefix(m.ArtifactType, bundlePrefix):
		return nil // something else
	}
	c.skip("referrer "+d.Digest, contentError{fmt.Errorf("it has %d layers that are bundles by a sha256 digest, and must have one", len(layers))})
	return nil
}

func (c *collection) manifest(ctx context.Context, d evidence.Descriptor) (*evidence.Manifest, error) {
	limit, err := limitOf(d, maxReferrer)
	if err != nil {
		return nil, err
	}
	raw, err := c.client.getDigest(ctx, c.target, "manifests", d.Digest, limit)
	if err != nil {
		return nil, err
	}
	m, err := evidence.ParseManifest(raw)
	if err != nil {
		return nil, contentError{err}
	}
	return m, nil
}

// fetchBundles is the last round. The bounds are shared out in order and by
// declared size, before anything is read.
func (c *collection) fetchBundles(ctx context.Context, candidates []evidence.Descriptor, layers []*evidence.Descriptor) {
	type found struct {
		source string
		layer  evidence.Descriptor
	}
	var take []found
	left := int64(evidence.MaxSignatures - legacyShare)
	for i, l := range layers {
		if l == nil {
			continue
		}
		source := "referrer " + candidates[i].Digest
		size, err := limitOf(*l, evidence.MaxBundle)
		switch {
		case err != nil:
			c.skip(source, err)
		case len(take) == evidence.MaxBundles:
			c.skip(source, contentError{fmt.Errorf("more than %d bundles are attached", evidence.MaxBundles)})
		case size > left:
			c.skip(source, contentError{errors.New("the bundles are larger together than allowed")})
		default:
			left -= size
			take = append(take, found{source, *l})
		}
	}
	bodies := make([][]byte, len(take))
	var g errgroup.Group
	g.SetLimit(parallel)
	for i, f := range take {
		g.Go(c.remarked(f.source, func() { bodies[i] = c.blob(ctx, f.source, f.layer, evidence.MaxBundle) }))
	}
	_ = g.Wait() // none of them returns an error
	for i, b := range bodies {
		if b != nil {
			c.e.Signatures = append(c.e.Signatures, evidence.Signature{Format: evidence.FormatBundle, Source: take[i].source, Bundle: b})
		}
	}
}

// blob fetches content, nil where that failed.
func (c *collection) blob(ctx context.Context, source string, d evidence.Descriptor, most int64) []byte {
	ctx, cancel := context.WithTimeout(ctx, partTimeout)
	defer cancel()
	limit, err := limitOf(d, most)
	var b []byte
	if err == nil {
		b, err = c.client.getDigest(ctx, c.target, "blobs", d.Digest, limit)
	}
	if err == nil && len(b) == 0 {
		err = contentError{errors.New("it is empty")}
	}
	if err != nil {
		c.skip(source, err)
		return nil
	}
	return b
}

// skip remarks what could not be used, and whether the registry is at fault.
func (c *collection) skip(source string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.e.Incomplete = c.e.Incomplete || isAway(err)
	switch n := len(c.e.Skipped); {
	case n < evidence.MaxSkipped-1:
		c.e.Skipped = append(c.e.Skipped, attest.Escape(source+": "+describe(err)))
	case n == evidence.MaxSkipped-1:
		c.e.Skipped = append(c.e.Skipped, "more was skipped")
	}
}
