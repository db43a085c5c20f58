package registry_test

import (
	"net/http"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/hallmark-ca/hallmark/test/bench/registry"
)

func TestComesBackWithItsContent(t *testing.T) {
	r := registry.ForTest(t, true)
	img, err := r.Push("team/app", "v1")
	must(t, err)
	addr := r.Addr()

	r.Stop()
	if _, err := remote.Head(img.Ref); err == nil {
		t.Fatal("a stopped registry answers")
	}
	must(t, r.Restart())
	d, err := remote.Head(img.Ref)
	must(t, err)
	if d.Digest.String() != img.Ref.DigestStr() || r.Addr() != addr {
		t.Errorf("after Restart: %s at %s, want %s at %s", d.Digest, r.Addr(), img.Ref.DigestStr(), addr)
	}
}

func TestIndexListsItsImages(t *testing.T) {
	r := registry.ForTest(t, true)
	ref, children, err := r.PushIndex("team/app", "v1", "linux/amd64", "linux/arm64")
	must(t, err)
	idx, err := remote.Index(ref)
	must(t, err)
	m, err := idx.IndexManifest()
	must(t, err)
	if len(m.Manifests) != 2 {
		t.Fatalf("%d manifests, want 2", len(m.Manifests))
	}
	for i, d := range m.Manifests {
		if d.Digest.String() != children[i].Ref.DigestStr() {
			t.Errorf("manifest %d is %s, want %s", i, d.Digest, children[i])
		}
		img, err := remote.Image(children[i].Ref)
		must(t, err)
		if c, err := img.ConfigName(); err != nil || c != children[i].Config {
			t.Errorf("config of %d: %v (%v), want %v", i, c, err, children[i].Config)
		}
	}
}

func TestTagMoves(t *testing.T) {
	r := registry.ForTest(t, true)
	_, err := r.Push("app", "latest")
	must(t, err)
	second, err := r.Push("app", "other")
	must(t, err)
	must(t, r.Tag(second.Ref, "latest"))
	d, err := remote.Head(second.Ref.Context().Tag("latest"))
	must(t, err)
	if d.Digest.String() != second.Ref.DigestStr() {
		t.Errorf("latest is %s, want %s", d.Digest, second.Ref.DigestStr())
	}
}

func TestReferrersAPI(t *testing.T) {
	for _, on := range []bool{true, false} {
		r := registry.ForTest(t, on)
		img, err := r.Push("app", "v1")
		must(t, err)
		resp, err := http.Get("http://" + r.Addr() + "/v2/app/referrers/" + img.Ref.DigestStr())
		must(t, err)
		resp.Body.Close()
		if got := resp.StatusCode == http.StatusOK; got != on {
			t.Errorf("referrers API %v: status %d", on, resp.StatusCode)
		}
	}
}

func TestWrapAndCount(t *testing.T) {
	r := registry.ForTest(t, true)
	img, err := r.Push("app", "v1")
	must(t, err)
	r.Forget()
	r.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodHead {
				http.Error(w, "no", http.StatusForbidden)
				return
			}
			next.ServeHTTP(w, req)
		})
	})
	if _, err := remote.Head(img.Ref); err == nil {
		t.Error("the fault was not seen")
	}
	r.Wrap(nil)
	if _, err := remote.Head(img.Ref); err != nil {
		t.Errorf("after the fault: %v", err)
	}
	if n := r.Requests("HEAD /v2/app/manifests/"); n != 2 {
		t.Errorf("%d requests for the manifest, want 2", n)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
