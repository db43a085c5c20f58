package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing/evidence"
)

// legacyShare is how much of evidence.MaxSignatures legacy signatures may take,
// so that neither format can crowd out the other.
const legacyShare = evidence.MaxSignatures / 2

// attestationNote marks a child of an index that describes another child
// (BuildKit's), and runs nowhere.
const attestationNote = "vnd.docker.reference.type"

var nextLink = regexp.MustCompile(`^\s*<([^<>]*)>\s*;\s*rel="?next"?\s*$`)

// referrers asks the referrers API, page by page. A registry without it answers
// 404, or another refusal of the path.
func (c *collection) referrers(ctx context.Context) []evidence.Descriptor {
	own := c.target.path("referrers", c.target.digest)
	path := own
	var all []evidence.Descriptor
	for page := range maxReferrerPages + 1 {
		if page == maxReferrerPages || len(all) > 4*maxReferrers {
			c.skip("referrers", contentError{fmt.Errorf("the list goes on after %d pages and %d entries, and was left there", page, len(all))})
			return all
		}
		found, next, err := c.referrersPage(ctx, path)
		if err != nil {
			if page > 0 || !unsupported(err) {
				c.skip("referrers", err)
			}
			return all
		}
		all = append(all, found...)
		if next == "" {
			return all
		}
		if path, err = nextPath(own, next); err != nil {
			c.skip("referrers", err)
			return all
		}
	}
	return all
}

func (c *collection) referrersPage(ctx context.Context, path string) ([]evidence.Descriptor, string, error) {
	ctx, cancel := context.WithTimeout(ctx, partTimeout)
	defer cancel()
	a, err := c.client.do(ctx, c.target.repo, http.MethodGet, path, indexType, evidence.MaxManifest)
	if err != nil {
		return nil, "", err
	}
	if ct, _, _ := strings.Cut(a.header.Get("Content-Type"), ";"); ct != indexType {
		return nil, "", errNoAPI
	}
	m, err := evidence.ParseManifest(a.body)
	if err != nil {
		return nil, "", contentError{err}
	}
	next := ""
	for _, v := range a.header.Values("Link") {
		if l := nextLink.FindStringSubmatch(v); l != nil {
			next = l[1]
		}
	}
	return m.Children, next, nil
}

// errNoAPI: some registries answer an unknown path with a page for people.
var errNoAPI = errors.New("the answer is no list of referrers")

func unsupported(err error) bool {
	var status *statusError
	if errors.As(err, &status) && !status.auth {
		switch status.status {
		case http.StatusNotFound, http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusGone, http.StatusNotImplemented:
			return true
		}
	}
	return errors.Is(err, errNoAPI)
}

// nextPath reads a link to the next page, which must be of the same list.
func nextPath(own, link string) (string, error) {
	u, err := url.Parse(link)
	if err != nil || u.User != nil || u.Fragment != "" || len(link) > 4<<10 {
		return "", contentError{fmt.Errorf("the link to the next page is malformed: %s", attest.Escape(link))}
	}
	// A host in the link is not followed, and neither is another path: what is
	// asked of this registry is always this list.
	if u.Path != own && u.Path != "" {
		return "", contentError{fmt.Errorf("the link to the next page leads elsewhere: %s", attest.Escape(link))}
	}
	return own + "?" + u.RawQuery, nil
}

// layer is one legacy signature.
type layer struct {
	evidence.Descriptor
	source string
}

// legacyLayers picks the layers that are signatures: the newest, which stand
// last, where there are too many.
func (c *collection) legacyLayers(m *evidence.Manifest) []layer {
	if m == nil {
		return nil
	}
	tag := strings.Replace(c.target.digest, ":", "-", 1) + ".sig"
	var all []layer
	for i, d := range m.Layers {
		l := layer{d, fmt.Sprintf("tag %s layer %d", tag, i)}
		switch {
		case d.MediaType != simpleType:
			c.skip(l.source, contentError{fmt.Errorf("it is of type %q", d.MediaType)})
		case !evidence.ValidDigest(d.Digest):
			c.skip(l.source, contentError{errors.New("its digest is no sha256 digest")})
		default:
			l.Annotations = signatureNotes(d.Annotations)
			all = append(all, l)
		}
	}
	if over := len(all) - evidence.MaxLegacy; over > 0 {
		c.skip("tag "+tag, contentError{fmt.Errorf("it has %d signatures, the first %d were not looked at", len(all), over)})
		all = all[over:]
	}
	// From the newest on, as long as there is room. A document that several
	// signatures share is kept once for each.
	left := int64(legacyShare)
	for i := len(all) - 1; i >= 0; i-- {
		size, notes := all[i].Size, notesSize(all[i].Annotations)
		if size == 0 {
			size = evidence.MaxPayload
		}
		if size < 0 || notes > evidence.MaxAnnotations || size+notes > left {
			c.skip(all[i].source, contentError{errors.New("it is larger than allowed, or all are together")})
			all[i].Digest = "" // left out below
			continue
		}
		left -= size + notes
	}
	kept := all[:0]
	for _, l := range all {
		if l.Digest != "" {
			kept = append(kept, l)
		}
	}
	return kept
}

// signatureNotes keeps the annotations that cosign writes.
func signatureNotes(all map[string]string) map[string]string {
	kept := map[string]string{}
	for k, v := range all {
		if strings.HasPrefix(k, "dev.cosignproject.cosign/") || strings.HasPrefix(k, "dev.sigstore.cosign/") {
			kept[k] = v
		}
	}
	return kept
}

func notesSize(notes map[string]string) int64 {
	n := 0
	for k, v := range notes {
		n += len(k) + len(v)
	}
	return int64(n)
}

// distinct is what has to be fetched for the layers: signatures of the same
// document share it.
func distinct(layers []layer) map[string]evidence.Descriptor {
	set := map[string]evidence.Descriptor{}
	for _, l := range layers {
		if d, ok := set[l.Digest]; !ok || l.Size > d.Size {
			set[l.Digest] = l.Descriptor
		}
	}
	return set
}

func (c *collection) addLegacy(layers []layer, payloads map[string][]byte) {
	for _, l := range layers {
		b := payloads[l.Digest]
		switch {
		case b == nil: // remarked when it was fetched
		case l.Size != 0 && l.Size != int64(len(b)):
			// The room was shared out by declared sizes.
			c.skip(l.source, contentError{fmt.Errorf("%d bytes are declared, and there are %d", l.Size, len(b))})
		default:
			c.e.Signatures = append(c.e.Signatures, evidence.Signature{
				Format: evidence.FormatLegacy, Source: l.source, Payload: b, Annotations: l.Annotations,
			})
		}
	}
}

// children picks the children of an index whose manifests are fetched, for the
// digests of their configurations: within the bounds, in order.
func (c *collection) children(subject *evidence.Manifest) []evidence.Descriptor {
	var take []evidence.Descriptor
	seen := map[string]bool{c.target.digest: true}
	left := int64(evidence.MaxManifestBytes - len(c.e.Manifests[c.target.digest]))
	over := 0
	for _, d := range subject.Children {
		if !evidence.ValidDigest(d.Digest) || seen[d.Digest] || d.Annotations[attestationNote] != "" {
			continue
		}
		seen[d.Digest] = true
		limit, err := limitOf(d, evidence.MaxManifest)
		if err != nil || limit > left || len(take) == evidence.MaxManifests-1 {
			over++
			continue
		}
		left -= limit
		take = append(take, d)
	}
	if over > 0 {
		c.skip("index", contentError{fmt.Errorf("%d of its children were left out: too many, or too large", over)})
	}
	return take
}

func (c *collection) child(ctx context.Context, d evidence.Descriptor) {
	ctx, cancel := context.WithTimeout(ctx, partTimeout)
	defer cancel()
	limit, err := limitOf(d, evidence.MaxManifest)
	var raw []byte
	if err == nil {
		raw, err = c.client.getDigest(ctx, c.target, "manifests", d.Digest, limit)
	}
	if err != nil {
		c.skip("child "+d.Digest, err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.e.Manifests[d.Digest] = raw
}
