package signing_test

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ocireg "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing"
	"github.com/hallmark-ca/hallmark/signing/registry"
)

// rawManifest is a manifest as it stands.
type rawManifest []byte

func (m rawManifest) RawManifest() ([]byte, error) { return m, nil }

func (rawManifest) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

const bundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"

// attachBundle attaches a signature as cosign 3 does: a referrer.
func attachBundle(t *testing.T, subject name.Digest, bundle []byte) {
	t.Helper()
	d := must(remote.Head(subject))
	config, layer := static.NewLayer([]byte("{}"), "application/vnd.oci.empty.v1+json"), static.NewLayer(bundle, bundleType)
	describe := func(l v1.Layer, kind types.MediaType) v1.Descriptor {
		if err := remote.WriteLayer(subject.Context(), l); err != nil {
			t.Fatal(err)
		}
		return v1.Descriptor{MediaType: kind, Digest: must(l.Digest()), Size: must(l.Size())}
	}
	raw := rawManifest(must(json.Marshal(struct {
		v1.Manifest
		ArtifactType string `json:"artifactType"`
	}{v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: describe(config, "application/vnd.oci.empty.v1+json"), Layers: []v1.Descriptor{describe(layer, bundleType)},
		Subject: &v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size},
	}, bundleType})))
	digest := must(static.NewLayer(raw, types.OCIManifestSchema1).Digest())
	if err := remote.Put(subject.Context().Digest(digest.String()), raw); err != nil {
		t.Fatal(err)
	}
}

// attachLegacy attaches a signature at the older tag.
func attachLegacy(t *testing.T, subject name.Digest, payload []byte, annotations map[string]string) {
	t.Helper()
	const kind = "application/vnd.dev.cosign.simplesigning.v1+json"
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	signed := must(mutate.Append(base, mutate.Addendum{Layer: static.NewLayer(payload, kind), MediaType: kind, Annotations: annotations}))
	tag := subject.Context().Tag(strings.Replace(subject.DigestStr(), ":", "-", 1) + ".sig")
	if err := remote.Write(tag, signed); err != nil {
		t.Fatal(err)
	}
}

// TestWhole goes the whole way, from a registry over the network to the gate's
// answer, in both formats and by referrers and fallback tag.
func TestWhole(t *testing.T) {
	t.Parallel()
	for _, referrers := range []bool{true, false} {
		t.Run(fmt.Sprintf("referrers %t", referrers), func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(ocireg.New(ocireg.Logger(log.New(io.Discard, "", 0)), ocireg.WithReferrersSupport(referrers)))
			t.Cleanup(server.Close)
			host := strings.TrimPrefix(server.URL, "http://")
			s := newSigner()

			push := func(path string) (name.Digest, v1.ImageIndex) {
				t.Helper()
				idx := must(random.Index(64, 1, 2))
				ref := must(name.NewTag(host + "/" + path + ":v1"))
				if err := remote.WriteIndex(ref, idx); err != nil {
					t.Fatal(err)
				}
				return ref.Context().Digest(must(idx.Digest()).String()), idx
			}
			bundled, idx := push("shop/bundled")
			legacy, _ := push("shop/legacy")
			bare, _ := push("shop/bare")
			attachBundle(t, bundled, s.bundle(bundled.DigestStr()).Bundle)
			l := s.legacy(legacy.DigestStr())
			attachLegacy(t, legacy, l.Payload, l.Annotations)
			children := must(idx.IndexManifest()).Manifests
			config := must(must(idx.Image(children[1].Digest)).ConfigName()).String()

			client, err := registry.New(registry.Config{
				Insecure: []string{host}, AllowPrivate: []string{host},
				Registerer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Now: time.Now,
			})
			if err != nil {
				t.Fatal(err)
			}
			g := newGate(t, newCollector(), compile(cip("shop", host+"/shop/**", authorities(byKey("release", s)))), func(c *signing.Config) { c.Collector = client })
			found, refusal := g.check(t, pod(
				runs(bundled.String(), ""), runs(bundled.String(), bundled.String()),
				runs(bundled.String(), bundled.Context().Name()+"@"+children[0].Digest.String()), runs(bundled.String(), config),
				runs(host+"/shop/bundled:v1", ""), runs(host+"/shop/bundled:v1", bundled.String()),
				runs(legacy.String(), legacy.String()),
			))
			wantPass(t, found, refusal)
			if found[6].Signer != s.name() || !found[4].Provisional {
				t.Errorf("%+v", found)
			}
			_, refusal = g.check(t, pod(runs(bare.String(), bare.String())))
			wantReason(t, refusal, attest.ImageUnsigned)
			_, refusal = g.check(t, pod(runs(bundled.String(), bundled.Context().Name()+"@"+bare.DigestStr())))
			wantReason(t, refusal, attest.ImageIDUnknown)
			_, refusal = g.check(t, pod(runs(host+"/shop/none:v1", "")))
			wantReason(t, refusal, attest.ImageNotFound)

			// Gone: what runs, runs on; what is new waits.
			server.Close()
			found, refusal = g.check(t, pod(runs(legacy.String(), legacy.String())))
			wantPass(t, found, refusal)
			_, refusal = g.check(t, pod(runs(host+"/shop/later@"+bare.DigestStr(), "")))
			wantReason(t, refusal, attest.RegistryAway)
		})
	}
}
