package policy_test

import (
	"strings"
	"testing"

	"github.com/hallmark-ca/hallmark/signing/policy"
)

const zeros = "sha256:0000000000000000000000000000000000000000000000000000000000000000"

func TestParseImage(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ image, name, repository, digest string }{
		{"nginx", "index.docker.io/library/nginx:latest", "index.docker.io/library/nginx", ""},
		{"nginx:1.27", "index.docker.io/library/nginx:1.27", "index.docker.io/library/nginx", ""},
		{"nginx@" + zeros, "index.docker.io/library/nginx@" + zeros, "index.docker.io/library/nginx", zeros},
		{"nginx:1.27@" + zeros, "index.docker.io/library/nginx@" + zeros, "index.docker.io/library/nginx", zeros},
		{"org/app", "index.docker.io/org/app:latest", "index.docker.io/org/app", ""},
		{"docker.io/nginx", "index.docker.io/library/nginx:latest", "index.docker.io/library/nginx", ""},
		{"index.docker.io/nginx", "index.docker.io/library/nginx:latest", "index.docker.io/library/nginx", ""},
		{"ghcr.io/org/app", "ghcr.io/org/app:latest", "ghcr.io/org/app", ""},
		{"GHCR.IO/org/app", "ghcr.io/org/app:latest", "ghcr.io/org/app", ""},
		{"localhost/app", "localhost/app:latest", "localhost/app", ""},
		{"localhost:5000/app:v1", "localhost:5000/app:v1", "localhost:5000/app", ""},
		{"reg.example:5000/a/b/c:v1", "reg.example:5000/a/b/c:v1", "reg.example:5000/a/b/c", ""},
		{"127.0.0.1:5000/app@" + zeros, "127.0.0.1:5000/app@" + zeros, "127.0.0.1:5000/app", zeros},
		{"[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app", ""},
		{"[0:0:0:0:0:0:0:1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app", ""},
	} {
		img, err := policy.ParseImage(row.image)
		if err != nil {
			t.Errorf("%s: %v", row.image, err)
			continue
		}
		if img.Name() != row.name || img.Repository() != row.repository || img.Digest() != row.digest || img.String() != row.image {
			t.Errorf("%s: %s, %s, %s; want %s, %s, %s", row.image, img.Name(), img.Repository(), img.Digest(), row.name, row.repository, row.digest)
		}
	}
}

func TestParseImageRefuses(t *testing.T) {
	t.Parallel()
	for _, image := range []string{
		"", " ", "app ", "\tapp", "app\n", "a\x00b", "App", "ghcr.io/Org/app", "ghcr.io/org/app:", "ghcr.io/org/app@", "ghcr.io/",
		"ghcr.io//app", "ghcr.io/org/", "/app", "../app", "ghcr.io/../app", "ghcr.io/org/..", "ghcr.io/./app", "ghcr.io/org/a..b", "ghcr.io/-app", "ghcr.io/app-",
		"https://ghcr.io/org/app", "user@ghcr.io/org/app", "user:pass@ghcr.io/org/app", "ghcr.io:x/org/app", "ghcr.io:123456/org/app", "ghcr.io./org/app", ".ghcr.io/org/app",
		"gh_cr.io/org/app", "ghсr.io/org/app" /* a Cyrillic letter */, "ghcr.io/org/аpp", "ghcr%2eio/org/app", "ghcr.io/org%2fapp",
		"[::1/app", "[::g]/app", "[127.0.0.1]:5000/app", "[fe80::1%25eth0]:5000/app", "::1/app",
		"app:bad tag", "app:" + strings.Repeat("t", 129), "app:.hidden",
		"app@sha512:" + strings.Repeat("0", 128), "app@sha256:" + strings.Repeat("0", 63), "app@sha256:" + strings.Repeat("0", 65), "app@sha256:" + strings.Repeat("A", 64),
		"app@md5:" + strings.Repeat("0", 32), "app@" + zeros + "@" + zeros, "app@sha256:" + strings.Repeat("0", 64) + "/x", "app:t@t:" + zeros,
		strings.Repeat("a", 256), "ghcr.io/" + strings.Repeat("a/", 124) + "a", strings.Repeat("a", 10_000),
		"ghcr.io/org/app?x=1", "ghcr.io/org/app#x", `ghcr.io\org\app`,
	} {
		if img, err := policy.ParseImage(image); err == nil {
			t.Errorf("%q was read as %s", image, img.Name())
		}
	}
}

// FuzzImage holds what is read of a name to the grammar.
func FuzzImage(f *testing.F) {
	for _, s := range []string{"nginx", "ghcr.io/org/app:v1@" + zeros, "[::1]:5000/a", "user@h/x", "a..b/c", "localhost:1/a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		img, err := policy.ParseImage(s)
		if err != nil {
			return
		}
		again, err := policy.ParseImage(img.Name())
		if err != nil || again.Name() != img.Name() || again.Repository() != img.Repository() {
			t.Fatalf("%q: %s is read again as %s: %v", s, img.Name(), again.Name(), err)
		}
		if img.String() != s || !strings.HasPrefix(img.Name(), img.Repository()) || strings.Contains(img.Repository(), "..") || strings.ToLower(img.Repository()) != img.Repository() {
			t.Fatalf("%q: %s in %s", s, img.Name(), img.Repository())
		}
	})
}
