package sign_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/hallmark-ca/hallmark/test/bench/registry"
	"github.com/hallmark-ca/hallmark/test/sign"
	"github.com/hallmark-ca/hallmark/test/tools"
)

// The two formats, and the function here that writes each.
var formats = map[string]struct {
	sign   func(context.Context, name.Digest, *sign.Key, ...sign.Option) error
	cosign []string // arguments that make cosign sign in it
	verify []string // arguments that make cosign verify it alone
}{
	"bundle": {
		sign: func(ctx context.Context, d name.Digest, k *sign.Key, o ...sign.Option) error {
			_, err := sign.Bundle(ctx, d, k, o...)
			return err
		},
		cosign: []string{"--signing-config", "none.json"},
		verify: []string{"--new-bundle-format=true"},
	},
	"legacy": {
		sign:   sign.Legacy,
		cosign: []string{"--new-bundle-format=false", "--use-signing-config=false", "--tlog-upload=false"},
		verify: []string{"--new-bundle-format=false"},
	},
}

// cosign accepts what is signed here, under that key and for that image alone.
func TestCosignVerifies(t *testing.T) {
	c := newCosign(t)
	for format, f := range formats {
		for _, referrers := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/referrers=%v", format, referrers), func(t *testing.T) {
				t.Parallel()
				ctx := testContext(t)
				r := registry.ForTest(t, referrers)
				img, err := r.Push("app", "v1")
				must(t, err)
				other, err := r.Push("app", "v2")
				must(t, err)
				key, stranger := newKey(t), newKey(t)
				must(t, f.sign(ctx, img.Ref, key))
				otherDigest, err := v1.NewHash(img.Ref.DigestStr())
				must(t, err)
				must(t, f.sign(ctx, other.Ref, key, sign.OfDigest(otherDigest)))

				if out, err := c.verify(ctx, key, img, f.verify); err != nil {
					t.Errorf("cosign refuses a good signature: %v\n%s", err, out)
				}
				if out, err := c.verify(ctx, stranger, img, f.verify); err == nil {
					t.Errorf("cosign takes a signature for another key's:\n%s", out)
				}
				if out, err := c.verify(ctx, key, other, f.verify); err == nil {
					t.Errorf("cosign takes a signature for another image's:\n%s", out)
				}
			})
		}
	}
}

func TestCosignRefusesCorrupt(t *testing.T) {
	c := newCosign(t)
	ctx := testContext(t)
	r := registry.ForTest(t, true)
	for format, f := range formats {
		img, err := r.Push("app", format)
		must(t, err)
		key := newKey(t)
		must(t, f.sign(ctx, img.Ref, key, sign.Corrupt()))
		if out, err := c.verify(ctx, key, img, f.verify); err == nil {
			t.Errorf("%s: cosign takes a corrupt signature:\n%s", format, out)
		}
	}
}

// Everything that is put into the registry has the shape of what cosign puts.
func TestSameShapeAsCosign(t *testing.T) {
	c := newCosign(t)
	ctx := testContext(t)
	key := newKey(t)
	for format, f := range formats {
		for _, referrers := range []bool{true, false} {
			r := registry.ForTest(t, referrers)
			ours, err := r.Push("app", "ours")
			must(t, err)
			theirs, err := r.Push("app", "theirs")
			must(t, err)
			must(t, f.sign(ctx, ours.Ref, key))
			c.sign(t, ctx, theirs, f.cosign)
			if diff := cmp.Diff(shape(t, r, theirs.Ref), shape(t, r, ours.Ref)); diff != "" {
				t.Errorf("%s, referrers %v (-cosign +ours):\n%s", format, referrers, diff)
			}
		}
	}
}

// A second signature stands beside the first.
func TestTwoSignatures(t *testing.T) {
	c := newCosign(t)
	ctx := testContext(t)
	r := registry.ForTest(t, false)
	for format, f := range formats {
		img, err := r.Push("app", format)
		must(t, err)
		for _, key := range []*sign.Key{newKey(t), newKey(t)} {
			must(t, f.sign(ctx, img.Ref, key))
			if out, err := c.verify(ctx, key, img, f.verify); err != nil {
				t.Errorf("%s: %v\n%s", format, err, out)
			}
		}
	}
}

func TestKeyRoundTrip(t *testing.T) {
	k := newKey(t)
	again, err := sign.ParseKey(k.PrivatePEM())
	must(t, err)
	a, err := k.PublicPEM()
	must(t, err)
	b, err := again.PublicPEM()
	must(t, err)
	if string(a) != string(b) {
		t.Error("a key read back is another one")
	}
}

// cosignTool is the real cosign with a key of its own.
type cosignTool struct{ path, dir string }

func newCosign(t *testing.T) *cosignTool {
	t.Helper()
	tools.Need(t, "cosign")
	path, err := tools.Path("cosign")
	must(t, err)
	c := &cosignTool{path: path, dir: t.TempDir()}
	for _, args := range [][]string{{"generate-key-pair"}, {"signing-config", "create", "--out", "none.json"}} {
		if out, err := c.run(testContext(t), args...); err != nil {
			t.Fatalf("cosign %v: %v\n%s", args, err, out)
		}
	}
	return c
}

func (c *cosignTool) run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.path, args...)
	cmd.Dir = c.dir
	// Its own home: no cache of public roots, and none is wanted. The address
	// of a proxy that is not there keeps it from asking for them.
	cmd.Env = []string{"HOME=" + c.dir, "COSIGN_PASSWORD=", "HTTPS_PROXY=http://127.0.0.1:1"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c *cosignTool) sign(t *testing.T, ctx context.Context, img registry.Image, args []string) {
	t.Helper()
	args = append(append([]string{"sign", "-y", "--key", "cosign.key", "--allow-http-registry"}, args...), img.String())
	if out, err := c.run(ctx, args...); err != nil {
		t.Fatalf("cosign %v: %v\n%s", args, err, out)
	}
}

func (c *cosignTool) verify(ctx context.Context, k *sign.Key, img registry.Image, args []string) (string, error) {
	pub, err := k.PublicPEM()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(c.dir, "key-")
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "key.pub")
	if err := os.WriteFile(file, pub, 0o600); err != nil {
		return "", err
	}
	args = append(append([]string{"verify", "--key", file, "--insecure-ignore-tlog", "--allow-http-registry"}, args...), img.String())
	return c.run(ctx, args...)
}

// shape fetches all that was attached to the image, and blanks what differs
// from one signature to the next: digests, sizes, times and signatures.
func shape(t *testing.T, r *registry.Registry, image name.Digest) map[string]any {
	t.Helper()
	base := "http://" + r.Addr() + "/v2/app/"
	hex := strings.TrimPrefix(image.DigestStr(), "sha256:")
	got := map[string]any{}
	digests := regexp.MustCompile(`sha256:[0-9a-f]{64}`)
	for label, path := range map[string]string{
		"referrers": "referrers/" + image.DigestStr(), "fallback": "manifests/sha256-" + hex, "legacy": "manifests/sha256-" + hex + ".sig",
	} {
		body := fetch(t, base+path)
		if body == nil {
			continue
		}
		got[label] = blank(body)
		for _, d := range digests.FindAllString(string(body), -1) {
			manifest := fetch(t, base+"manifests/"+d)
			if d == image.DigestStr() || manifest == nil {
				manifest = body
			}
			got[label+" manifest"] = blank(manifest)
			for i, blob := range digests.FindAllString(string(manifest), -1) {
				if b := fetch(t, base+"blobs/"+blob); b != nil {
					got[fmt.Sprintf("%s blob %d", label, i)] = blank(b)
				}
			}
		}
	}
	if len(got) < 3 {
		t.Fatalf("only %d documents attached to %s", len(got), image)
	}
	return got
}

func fetch(t *testing.T, url string) []byte {
	t.Helper()
	resp, err := http.Get(url)
	must(t, err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil
	}
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	return b
}

// blank parses JSON, and the JSON in base64 that a bundle's payload is.
func blank(b []byte) any {
	var v any
	if json.Unmarshal(b, &v) != nil {
		return fmt.Sprintf("%d bytes that are no JSON", len(b))
	}
	return blankValue("", v)
}

func blankValue(key string, v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = blankValue(k, v[k])
		}
	case []any:
		for i := range v {
			v[i] = blankValue(key, v[i])
		}
	case float64:
		if key == "size" {
			return "a size"
		}
	case string:
		switch key {
		case "sig", "hint", "dev.cosignproject.cosign/signature":
			return "base64"
		case "payload":
			if b, err := base64.StdEncoding.DecodeString(v); err == nil {
				return blank(b)
			}
		case "org.opencontainers.image.created":
			return "a time"
		}
		return regexp.MustCompile(`[0-9a-f]{64}`).ReplaceAllString(v, "a digest")
	}
	return v
}

func newKey(t *testing.T) *sign.Key {
	t.Helper()
	k, err := sign.NewKey()
	must(t, err)
	return k
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
