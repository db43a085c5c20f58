package registry_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing/evidence"
)

func both(t *testing.T, f func(*testing.T, *bench)) {
	for _, referrers := range []bool{true, false} {
		t.Run(fmt.Sprintf("referrers=%v", referrers), func(t *testing.T) {
			t.Parallel()
			f(t, newBench(t, referrers))
		})
	}
}

func TestCollect(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, b *bench) {
		s, img := b.push("v1")
		other, _ := b.push("v2")
		b.attach(s, `{"n":1}`)
		b.attach(s, `{"n":2}`)
		b.attach(other, `{"of":"another"}`)
		b.sign(s, "one", "two")
		e := b.mustCollect(s)
		got := found(e)
		slices.Sort(got[:2]) // the registry keeps them in a map
		if d := cmp.Diff([]string{`{"n":1}`, `{"n":2}`, "legacy one", "legacy two"}, got); d != "" {
			t.Error(d)
		}
		if len(e.Skipped) != 0 || e.Incomplete || e.Subject != s || time.Since(e.Collected) > time.Minute {
			t.Errorf("%+v", e)
		}
		config, err := img.ConfigName()
		must(t, err)
		if !e.HasConfig(config.String()) || len(e.Manifests) != 1 {
			t.Error("the image's own manifest is not there")
		}
		for _, sig := range e.Signatures {
			if _, ok := sig.Annotations["other"]; ok || sig.Source == "" {
				t.Errorf("%+v", sig)
			}
		}
		// The subject's name is completed and its tag resolved.
		c := b.client()
		resolved, err := c.Resolve(t.Context(), b.host+"/team/app:v1")
		must(t, err)
		if resolved != s {
			t.Errorf("resolved %s, want %s", resolved, s)
		}
	})
}

func TestCollectUnsigned(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, b *bench) {
		s, _ := b.push("v1")
		e := b.mustCollect(s)
		if len(e.Signatures) != 0 || len(e.Skipped) != 0 || e.Incomplete {
			t.Errorf("%+v", e)
		}
	})
}

// cosign's index at the fallback tag has neither annotations nor types.
func TestCollectBareFallback(t *testing.T) {
	t.Parallel()
	b := newBench(t, false)
	s, _ := b.push("v1")
	b.attach(s, `{"n":1}`)
	b.attach(s, "an SBOM", func(m *v1.Manifest) {
		m.ArtifactType, m.Annotations = "application/spdx+json", nil
		m.Layers[0].MediaType = "application/spdx+json"
	})
	tag := b.repo.Tag(strings.Replace(s.Digest, ":", "-", 1))
	idx, err := remote.Index(tag)
	must(t, err)
	m, err := idx.IndexManifest()
	must(t, err)
	if len(m.Manifests) != 2 {
		t.Fatalf("%d entries at the fallback tag", len(m.Manifests))
	}
	for i := range m.Manifests {
		m.Manifests[i].Annotations, m.Manifests[i].ArtifactType = nil, ""
	}
	b.put(tag, m, types.OCIImageIndex)
	e := b.mustCollect(s)
	if d := cmp.Diff([]string{`{"n":1}`}, found(e)); d != "" || len(e.Skipped) != 0 {
		t.Error(d, e.Skipped)
	}
}

func (b *bench) pushIndex(tag string, n int) (evidence.Subject, []v1.Image) {
	b.t.Helper()
	idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	var children []v1.Image
	for i := range n + 1 {
		img, err := random.Image(32, 1)
		must(b.t, err)
		add := mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: fmt.Sprint(i)}}}
		if i == n {
			add.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
		}
		idx = mutate.AppendManifests(idx, add)
		children = append(children, img)
	}
	must(b.t, remote.WriteIndex(b.repo.Tag(tag), idx))
	d, err := idx.Digest()
	must(b.t, err)
	return b.subject(d), children
}

func TestCollectIndex(t *testing.T) {
	t.Parallel()
	b := newBench(t, true)
	s, children := b.pushIndex("v1", 3)
	b.attach(s, `{"n":1}`)
	first, err := children[0].Digest()
	must(t, err)
	// A signature of a child is none of the index.
	b.attach(b.subject(first), `{"of":"child"}`)
	b.sign(b.subject(first), "of child")
	// One child cannot be had: a remark, no more.
	broken, err := children[1].Digest()
	must(t, err)
	b.lie("manifests/"+broken.String(), status(http.StatusNotFound))
	e := b.mustCollect(s)
	if d := cmp.Diff([]string{`{"n":1}`}, found(e)); d != "" {
		t.Error(d)
	}
	wantSkipped(t, e, "child "+broken.String())
	for i, img := range children {
		d, err := img.Digest()
		must(t, err)
		config, err := img.ConfigName()
		must(t, err)
		if !e.Lists(d.String()) {
			t.Errorf("child %d is not listed", i)
		}
		// 1 is broken, and 3 is an attestation, which runs nowhere.
		if want := i == 0 || i == 2; e.HasConfig(config.String()) != want {
			t.Errorf("configuration of child %d: want %v", i, want)
		}
	}
	if e.Lists(s.Digest) || len(e.Manifests) != 3 {
		t.Errorf("manifests: %v", sortedKeys(e.Manifests))
	}
}

// rounds counts how often requests had to wait for the answers to others: it
// holds each back until none came for a while, and lets all go at once.
type rounds struct {
	mu    sync.Mutex // guards the rest
	gate  chan struct{}
	n     int
	timer *time.Timer
}

func (r *rounds) hold(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		if r.gate == nil {
			r.gate = make(chan struct{})
			r.n++
			r.timer = time.AfterFunc(300*time.Millisecond, func() {
				r.mu.Lock()
				defer r.mu.Unlock()
				close(r.gate)
				r.gate = nil
			})
		} else {
			r.timer.Reset(300 * time.Millisecond)
		}
		gate := r.gate
		r.mu.Unlock()
		<-gate
		h.ServeHTTP(w, req)
	})
}

func (r *rounds) take() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.n
	r.n = 0
	return n
}

// Three rounds for an image with one bundle, also of many platforms, and one
// more to greet a registry for the first time.
func TestRoundTrips(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, b *bench) {
		var images []evidence.Subject
		for i := range 2 {
			s, _ := b.pushIndex(fmt.Sprint(i), 3)
			b.attach(s, `{"n":1}`)
			b.sign(s, "one")
			images = append(images, s)
		}
		var r rounds
		b.before(r.hold)
		c := b.client()
		for i, want := range []int{4, 3} {
			b.forget()
			e, err := c.Collect(t.Context(), images[i])
			must(t, err)
			if len(e.Signatures) != 2 {
				t.Errorf("%d signatures", len(e.Signatures))
			}
			if n := r.take(); n > want {
				t.Errorf("collection %d took %d rounds, want %d: %q", i, n, want, b.requests())
			}
		}
	})
}

func TestBoundsOfCount(t *testing.T) {
	t.Parallel()
	b := newBench(t, true)
	s, _ := b.push("v1")
	for i := range 70 {
		b.attach(s, fmt.Sprintf(`{"n":%d}`, i))
	}
	var legacy []string
	for i := range 120 {
		legacy = append(legacy, fmt.Sprint(i))
	}
	b.sign(s, legacy...)
	b.forget()
	e := b.mustCollect(s)
	got := found(e)
	if len(got) != evidence.MaxBundles+evidence.MaxLegacy {
		t.Errorf("%d signatures", len(got))
	}
	if first := got[evidence.MaxBundles]; first != "legacy 20" {
		t.Errorf("the first legacy signature is %s: want the newest hundred", first)
	}
	wantSkipped(t, e, "more than 64 bundles")
	wantSkipped(t, e, "the first 20 were not looked at")
	blobs := 0
	for _, r := range b.requests() {
		if strings.Contains(r, "/blobs/") {
			blobs++
		}
	}
	if blobs != 65 { // all legacy signatures share one document
		t.Errorf("%d blobs were fetched", blobs)
	}
}

func TestBoundsOfSize(t *testing.T) {
	t.Parallel()
	b := newBench(t, true)
	s, _ := b.push("v1")
	large := strings.Repeat("x", evidence.MaxBundle-10)
	for i := range 6 {
		b.attach(s, fmt.Sprintf("%d%s", i, large))
	}
	b.attach(s, strings.Repeat("y", evidence.MaxBundle+1))
	e := b.mustCollect(s)
	if n := len(e.Signatures); n != 4 {
		t.Errorf("%d bundles of a megabyte were kept, want 4: the other half is for legacy ones", n)
	}
	wantSkipped(t, e, "larger together")
	wantSkipped(t, e, "bytes are declared")
}

// Attestations, however many, do not push out a signature; neither do types of
// other artifacts, however they call themselves.
func TestSignatureBehindAttestations(t *testing.T) {
	t.Parallel()
	b := newBench(t, true)
	s, _ := b.push("v1")
	for i := range evidence.MaxBundles + 5 {
		b.attach(s, fmt.Sprintf(`{"attestation":%d}`, i), func(m *v1.Manifest) { m.Annotations[predicate] = "https://spdx.dev/Document" })
	}
	b.attach(s, `{"signature":1}`)
	b.attach(s, `{"signature":2}`, func(m *v1.Manifest) { m.Annotations = nil })
	e := b.mustCollect(s)
	got := found(e)
	if d := cmp.Diff([]string{`{"signature":1}`, `{"signature":2}`}, got[:2]); d != "" {
		t.Error(d)
	}
}

// Whatever stands before, after and around it, a good bundle is found.
func TestJunkReferrers(t *testing.T) {
	t.Parallel()
	for name, junk := range map[string]struct {
		put        func(b *bench, s evidence.Subject) string // the digest that is listed
		skipped    string
		incomplete bool
	}{
		"manifest missing": {func(b *bench, _ evidence.Subject) string { return "sha256:" + strings.Repeat("00", 32) }, "404", false},
		"manifest broken": {func(b *bench, s evidence.Subject) string {
			d := b.attach(s, "1")
			b.lie("manifests/"+d, status(http.StatusBadGateway))
			return d
		}, "502", true},
		"manifest lies": {func(b *bench, s evidence.Subject) string {
			d := b.attach(s, "1")
			b.lie("manifests/"+d, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") })
			return d
		}, "content of digest", false},
		"manifest is no JSON": {func(b *bench, s evidence.Subject) string {
			body := []byte("hello")
			d := evidence.DigestOf(body)
			b.lie("manifests/"+d, func(w http.ResponseWriter, _ *http.Request) { w.Write(body) })
			return d
		}, "no JSON", false},
		"no layers": {func(b *bench, s evidence.Subject) string {
			return b.attach(s, "1", func(m *v1.Manifest) { m.Layers = nil })
		}, "0 layers", false},
		"two layers": {func(b *bench, s evidence.Subject) string {
			return b.attach(s, "1", func(m *v1.Manifest) { m.Layers = append(m.Layers, m.Layers[0]) })
		}, "2 layers", false},
		"blob missing": {func(b *bench, s evidence.Subject) string {
			d := b.attach(s, `"gone"`)
			b.lie("blobs/"+evidence.DigestOf([]byte(`"gone"`)), status(http.StatusNotFound))
			return d
		}, "404", false},
		"blob refused": {func(b *bench, s evidence.Subject) string {
			d := b.attach(s, `"gone"`)
			b.lie("blobs/"+evidence.DigestOf([]byte(`"gone"`)), status(http.StatusTooManyRequests, "Retry-After", "60"))
			return d
		}, "retry after 60", true},
		"blob lies": {func(b *bench, s evidence.Subject) string {
			d := b.attach(s, `"gone"`)
			b.lie("blobs/"+evidence.DigestOf([]byte(`"gone"`)), func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `"liar"`) })
			return d
		}, "content of digest", false},
		"blob without end": {func(b *bench, s evidence.Subject) string {
			d := b.attach(s, `"endless"`)
			b.lie("blobs/"+evidence.DigestOf([]byte(`"endless"`)), endless)
			return d
		}, "larger than 9 bytes", false},
		"blob without size": {func(b *bench, s evidence.Subject) string {
			d := b.attach(s, `"unsized"`, func(m *v1.Manifest) { m.Layers[0].Size = 0 })
			b.lie("blobs/"+evidence.DigestOf([]byte(`"unsized"`)), endless)
			return d
		}, "larger than 1048576 bytes", false},
		"blob declared huge": {func(b *bench, s evidence.Subject) string {
			return b.attach(s, `"huge"`, func(m *v1.Manifest) { m.Layers[0].Size = 10 << 30 })
		}, "10737418240 bytes are declared", false},
		"blob declared negative": {func(b *bench, s evidence.Subject) string {
			return b.attach(s, `"negative"`, func(m *v1.Manifest) { m.Layers[0].Size = -1 })
		}, "-1 bytes are declared", false},
		"blob compressed": {func(b *bench, s evidence.Subject) string {
			d := b.attach(s, `"bomb"`)
			b.lie("blobs/"+evidence.DigestOf([]byte(`"bomb"`)), func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Encoding", "gzip")
				w.Write([]byte("\x1f\x8b"))
			})
			return d
		}, "encoded (gzip)", false},
		"blob cut": {func(b *bench, s evidence.Subject) string {
			d := b.attach(s, `"cut"`)
			b.lie("blobs/"+evidence.DigestOf([]byte(`"cut"`)), func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", "5")
				w.Write([]byte(`"c`))
			})
			return d
		}, "unexpected EOF", true},
		"digest malformed": {func(*bench, evidence.Subject) string { return "sha256:xyz" }, "no sha256 digest", false},
		"digest sha512":    {func(*bench, evidence.Subject) string { return "sha512:" + strings.Repeat("0", 128) }, "no sha256 digest", false},
		"path":             {func(*bench, evidence.Subject) string { return "../../../../etc/passwd" }, "no sha256 digest", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, true)
			s, _ := b.push("v1")
			good := b.attach(s, `{"good":true}`)
			bad := junk.put(b, s)
			b.lie("referrers/"+s.Digest, listing(bad, good, bad))
			e := b.mustCollect(s)
			if d := cmp.Diff([]string{`{"good":true}`}, found(e)); d != "" {
				t.Error(d)
			}
			wantSkipped(t, e, junk.skipped)
			if e.Incomplete != junk.incomplete {
				t.Errorf("incomplete is %v", e.Incomplete)
			}
			// Alone, what the registry failed at is no verdict.
			b.lie("referrers/"+s.Digest, listing(bad))
			alone, err := b.collect(s)
			if junk.incomplete {
				wantDenied(t, err, attest.RegistryAway, junk.skipped)
			} else if err != nil || len(alone.Signatures) != 0 {
				t.Errorf("alone: %v, %v", alone, err)
			}
		})
	}
}

// listing answers as the referrers API.
func listing(digests ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		type entry struct {
			MediaType    string `json:"mediaType"`
			Digest       string `json:"digest"`
			ArtifactType string `json:"artifactType"`
		}
		list := struct {
			Manifests []entry `json:"manifests"`
		}{[]entry{}}
		for _, d := range digests {
			list.Manifests = append(list.Manifests, entry{"application/vnd.oci.image.manifest.v1+json", d, bundleType})
		}
		w.Header().Set("Content-Type", indexType)
		_ = json.NewEncoder(w).Encode(list)
	}
}

func endless(w http.ResponseWriter, r *http.Request) {
	chunk := make([]byte, 64<<10)
	for r.Context().Err() == nil {
		if _, err := w.Write(chunk); err != nil {
			return
		}
	}
}

func TestPagesOfReferrers(t *testing.T) {
	t.Parallel()
	b := newBench(t, true)
	s, _ := b.push("v1")
	good := b.attach(s, `{"good":true}`)
	path := "/v2/team/app/referrers/" + s.Digest
	for name, c := range map[string]struct {
		link    func(page string) string
		good    bool
		skipped string
	}{
		"three pages": {func(p string) string {
			return map[string]string{"": "<" + path + `?page=2>; rel="next"`, "2": `<?page=3>; rel="next"`}[p]
		}, true, ""},
		"absolute": {func(p string) string {
			return map[string]string{"": "<https://elsewhere.invalid" + path + `?page=3>; rel="next"`}[p]
		}, true, ""},
		"without end": {func(p string) string { return `<?page=` + p + `1>; rel="next"` }, false, "goes on after 16 pages"},
		"elsewhere":   {func(string) string { return `</v2/other/referrers/x?page=3>; rel="next"` }, false, "leads elsewhere"},
		"upwards":     {func(string) string { return `<../../_catalog>; rel="next"` }, false, "leads elsewhere"},
		"malformed":   {func(string) string { return `<%zz>; rel="next"` }, false, "malformed"},
	} {
		b.lie("referrers/"+s.Digest, func(w http.ResponseWriter, r *http.Request) {
			page := r.URL.Query().Get("page")
			if l := c.link(page); l != "" {
				w.Header().Set("Link", l)
			}
			if page == "3" {
				listing(good)(w, r)
			} else {
				listing()(w, r)
			}
		})
		e := b.mustCollect(s)
		if c.good != (len(e.Signatures) == 1) {
			t.Errorf("%s: %d signatures", name, len(e.Signatures))
		}
		if c.skipped != "" {
			wantSkipped(t, e, c.skipped)
		} else if len(e.Skipped) != 0 {
			t.Errorf("%s: skipped %q", name, e.Skipped)
		}
	}
}

// A registry without the referrers API answers in many ways; a legacy signature
// is found all the same, and where the API failed that is no verdict.
func TestReferrersAPIBroken(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer     http.HandlerFunc
		incomplete bool
	}{
		"404": {status(http.StatusNotFound), false},
		"400": {status(http.StatusBadRequest), false},
		"405": {status(http.StatusMethodNotAllowed), false},
		"page": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, "<html>")
		}, false},
		"500": {status(http.StatusInternalServerError), true},
		"403": {status(http.StatusForbidden), true},
		"junk": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", indexType)
			fmt.Fprint(w, "[")
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, true)
			s, _ := b.push("v1")
			b.lie("referrers/"+s.Digest, c.answer)
			if e, err := b.collect(s); c.incomplete {
				wantDenied(t, err, attest.RegistryAway, "referrers")
			} else if must(t, err); len(e.Signatures) != 0 {
				t.Error("signatures from nowhere")
			}
			b.sign(s, "one")
			e := b.mustCollect(s)
			if d := cmp.Diff([]string{"legacy one"}, found(e)); d != "" || e.Incomplete != c.incomplete {
				t.Error(d, e.Incomplete)
			}
		})
	}
}

func TestLegacyJunk(t *testing.T) {
	t.Parallel()
	b := newBench(t, true)
	s, _ := b.push("v1")
	layer := b.blob(`{"a":1}`, simpleType)
	wrongSize, wrongType, wrongDigest, large := *layer.DeepCopy(), *layer.DeepCopy(), *layer.DeepCopy(), *layer.DeepCopy()
	wrongSize.Size = 1000
	wrongType.MediaType = "application/octet-stream"
	wrongDigest.Digest.Hex = strings.Repeat("0", 64)
	large.Size = 10 << 30
	large.Annotations = map[string]string{"dev.cosignproject.cosign/signature": strings.Repeat("A", 100_000)}
	layer.Annotations = map[string]string{"dev.cosignproject.cosign/signature": "good"}
	b.put(b.repo.Tag(strings.Replace(s.Digest, ":", "-", 1)+".sig"), v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: b.blob("{}", "application/vnd.oci.image.config.v1+json"),
		Layers: []v1.Descriptor{wrongSize, wrongType, layer, wrongDigest, large},
	}, types.OCIManifestSchema1)
	e := b.mustCollect(s)
	if d := cmp.Diff([]string{"legacy good"}, found(e)); d != "" {
		t.Error(d)
	}
	for _, text := range []string{"layer 0: 1000 bytes are declared, and there are 7", `layer 1: it is of type`, "404", "layer 4: it is larger"} {
		wantSkipped(t, e, text)
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t, true)
	s, _ := b.pushIndex("v1", 3)
	b.attach(s, `{"n":1}`)
	c := b.client()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if e, err := c.Collect(t.Context(), s); err != nil || len(e.Signatures) != 1 {
				t.Errorf("%v, %v", e, err)
			}
			if _, err := c.Resolve(t.Context(), b.host+"/team/app:v1"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestSlowBodies(t *testing.T) {
	t.Parallel()
	b := newBench(t, true)
	s, _ := b.push("v1")
	b.attach(s, `{"good":true}`)
	b.attach(s, `"slow"`)
	stall := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "6")
		w.Write([]byte(`"s`))
		w.(http.Flusher).Flush()
		if r.Method == http.MethodGet { // what follows a HEAD's headers, no client waits for
			<-r.Context().Done()
		}
	}
	b.lie("blobs/"+evidence.DigestOf([]byte(`"slow"`)), stall)
	e := b.mustCollect(s, timeout(time.Second))
	if d := cmp.Diff([]string{`{"good":true}`}, found(e)); d != "" || !e.Incomplete {
		t.Error(d, e.Incomplete)
	}
	wantSkipped(t, e, "deadline exceeded")
	b.lie("manifests/"+s.Digest, stall)
	_, err := b.collect(s, timeout(time.Second))
	wantDenied(t, err, attest.RegistryAway, "deadline exceeded")
	c := b.client(timeout(time.Second))
	b.lie("manifests/v1", stall)
	_, err = c.Resolve(t.Context(), b.host+"/team/app:v1")
	wantDenied(t, err, attest.RegistryAway, "deadline exceeded")
}
