package evidence_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-ca/hallmark/signing/evidence"
)

const repository = "registry.example/team/app"

func image(n int) (raw []byte, digest, config string) {
	config = evidence.DigestOf(fmt.Appendf(nil, "config %d", n))
	raw = fmt.Appendf(nil, `{"schemaVersion":2,"config":{"digest":%q,"size":3},"layers":[]}`, config)
	return raw, evidence.DigestOf(raw), config
}

func ofImage(n int) *evidence.Evidence {
	raw, digest, _ := image(n)
	return &evidence.Evidence{
		Subject:   evidence.Subject{Repository: repository, Digest: digest},
		Manifests: map[string][]byte{digest: raw},
		Signatures: []evidence.Signature{
			{Format: evidence.FormatBundle, Source: "referrer", Bundle: []byte("{}")},
			{Format: evidence.FormatLegacy, Source: "tag", Payload: []byte("{}"), Annotations: map[string]string{"a": "b"}},
		},
	}
}

// ofIndex is an index of images 1 and 2, with the manifest of 1 at hand.
func ofIndex() *evidence.Evidence {
	raw1, digest1, _ := image(1)
	_, digest2, _ := image(2)
	raw := fmt.Appendf(nil, `{"schemaVersion":2,"manifests":[{"digest":%q},{"digest":%q}]}`, digest1, digest2)
	digest := evidence.DigestOf(raw)
	return &evidence.Evidence{
		Subject:   evidence.Subject{Repository: repository, Digest: digest},
		Manifests: map[string][]byte{digest: raw, digest1: raw1},
	}
}

func TestListsAndConfigs(t *testing.T) {
	t.Parallel()
	single, index := ofImage(1), ofIndex()
	must(t, single.Check())
	must(t, index.Check())
	_, digest1, config1 := image(1)
	_, digest2, config2 := image(2)
	_, digest3, config3 := image(3)
	for _, c := range []struct {
		e             *evidence.Evidence
		digest        string
		lists, config bool
	}{
		{single, digest1, false, false}, {single, config1, false, true}, {single, config2, false, false},
		{index, digest1, true, false}, {index, digest2, true, false}, {index, digest3, false, false},
		{index, config1, false, true},
		{index, config2, false, false}, // its manifest is not at hand
		{index, config3, false, false},
		{index, index.Subject.Digest, false, false},
		{index, strings.ToUpper(digest1), false, false}, {index, "", false, false}, {single, "", false, false},
	} {
		if got := c.e.Lists(c.digest); got != c.lists {
			t.Errorf("Lists(%s) = %v", c.digest, got)
		}
		if got := c.e.HasConfig(c.digest); got != c.config {
			t.Errorf("HasConfig(%s) = %v", c.digest, got)
		}
	}
	// A foreign manifest beside them lends its configuration to nobody.
	raw3, _, _ := image(3)
	index.Manifests[digest3] = raw3
	if index.HasConfig(config3) {
		t.Error("the configuration of a manifest that the index does not list counts")
	}
	if index.Check() == nil {
		t.Error("a manifest that the index does not list passes")
	}
}

func TestCheckRefuses(t *testing.T) {
	t.Parallel()
	_, digest1, _ := image(1)
	raw2, digest2, _ := image(2)
	own := func(e *evidence.Evidence, raw string) {
		e.Subject.Digest = evidence.DigestOf([]byte(raw))
		e.Manifests = map[string][]byte{e.Subject.Digest: []byte(raw)}
	}
	for name, c := range map[string]struct {
		change func(*evidence.Evidence)
		want   string
	}{
		"no repository":        {func(e *evidence.Evidence) { e.Subject.Repository = "" }, "no repository"},
		"repository with line": {func(e *evidence.Evidence) { e.Subject.Repository = "a\nb" }, "no repository"},
		"sha512":               {func(e *evidence.Evidence) { e.Subject.Digest = "sha512:" + strings.Repeat("0", 128) }, "no sha256 digest"},
		"capitals":             {func(e *evidence.Evidence) { e.Subject.Digest = "sha256:" + strings.Repeat("A", 64) }, "no sha256 digest"},
		"manifest missing":     {func(e *evidence.Evidence) { e.Manifests = nil }, "missing"},
		"manifest changed":     {func(e *evidence.Evidence) { e.Manifests[digest1] = append(e.Manifests[digest1], ' ') }, "another digest"},
		"manifest of another":  {func(e *evidence.Evidence) { e.Manifests[digest1] = raw2 }, "another digest"},
		"foreign manifest":     {func(e *evidence.Evidence) { e.Manifests[digest2] = raw2 }, "not listed"},
		"large manifest":       {func(e *evidence.Evidence) { e.Manifests[digest1] = make([]byte, evidence.MaxManifest+1) }, "bytes"},
		"no JSON":              {func(e *evidence.Evidence) { own(e, "hello") }, "no JSON"},
		"image and index":      {func(e *evidence.Evidence) { own(e, `{"manifests":[],"config":{"digest":"sha256:00"}}`) }, "an image and an index"},
		"index with layers":    {func(e *evidence.Evidence) { own(e, `{"manifests":[],"layers":[]}`) }, "an image and an index"},
		"member twice":         {func(e *evidence.Evidence) { own(e, `{"manifests":[],"manifests":[]}`) }, "ambiguous"},
		"many manifests": {func(e *evidence.Evidence) {
			for i := range evidence.MaxManifests {
				e.Manifests[fmt.Sprint(i)] = nil
			}
		}, "at most 256"},
		"many bundles":  {func(e *evidence.Evidence) { e.Signatures = many(evidence.FormatBundle, evidence.MaxBundles+1) }, "65 bundles"},
		"many layers":   {func(e *evidence.Evidence) { e.Signatures = many(evidence.FormatLegacy, evidence.MaxLegacy+1) }, "101 legacy"},
		"large bundle":  {func(e *evidence.Evidence) { e.Signatures[0].Bundle = make([]byte, evidence.MaxBundle+1) }, "larger"},
		"large payload": {func(e *evidence.Evidence) { e.Signatures[1].Payload = make([]byte, evidence.MaxPayload+1) }, "larger"},
		"large annotation": {func(e *evidence.Evidence) {
			e.Signatures[1].Annotations["a"] = strings.Repeat("b", evidence.MaxAnnotations)
		}, "larger"},
		"two formats":         {func(e *evidence.Evidence) { e.Signatures[0].Payload = []byte("{}") }, "two formats"},
		"two formats, legacy": {func(e *evidence.Evidence) { e.Signatures[1].Bundle = []byte("{}") }, "two formats"},
		"format unknown":      {func(e *evidence.Evidence) { e.Signatures[0].Format = "other" }, "no known format"},
		"large together": {func(e *evidence.Evidence) {
			e.Signatures = many(evidence.FormatBundle, 9)
			for i := range e.Signatures {
				e.Signatures[i].Bundle = make([]byte, evidence.MaxBundle)
			}
		}, "are allowed"},
		"many remarks": {func(e *evidence.Evidence) { e.Skipped = make([]string, evidence.MaxSkipped+1) }, "remarks"},
	} {
		e := ofImage(1)
		c.change(e)
		if err := e.Check(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, c.want)
		}
	}
}

func many(f evidence.Format, n int) []evidence.Signature {
	out := make([]evidence.Signature, n)
	for i := range out {
		out[i].Format = f
	}
	return out
}

// What is read from disk holds, or is not read: and what was read is kept and
// read again as the same.
func FuzzEvidence(f *testing.F) {
	for _, e := range []*evidence.Evidence{ofImage(1), ofIndex()} {
		b, err := json.Marshal(map[string]any{"version": 1, "evidence": e})
		must(f, err)
		f.Add(b)
	}
	subjects := []evidence.Subject{ofImage(1).Subject, ofIndex().Subject}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, s := range subjects {
			e, err := evidence.Decode(data, s)
			if err != nil {
				continue
			}
			must(t, e.Check())
			if e.Subject != s || evidence.DigestOf(e.Manifests[s.Digest]) != s.Digest {
				t.Errorf("evidence of %s was read as that of %s", e.Subject, s)
			}
			b, err := json.Marshal(map[string]any{"version": 1, "evidence": e})
			must(t, err)
			again, err := evidence.Decode(b, s)
			must(t, err)
			if !bytes.Equal(encode(t, e), encode(t, again)) {
				t.Error(cmp.Diff(e, again))
			}
		}
	})
}

func encode(t *testing.T, e *evidence.Evidence) []byte {
	t.Helper()
	b, err := json.Marshal(e)
	must(t, err)
	return b
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
