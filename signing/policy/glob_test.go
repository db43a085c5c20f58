package policy_test

import (
	"strings"
	"testing"

	"github.com/hallmark-ca/hallmark/signing/policy"
)

func document(name string, globs ...string) string {
	s := "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {name: " + name + "}\nspec:\n  images:\n"
	for _, g := range globs {
		s += "  - glob: '" + g + "'\n"
	}
	return s + "  authorities:\n  - static: {action: pass}\n"
}

func compile(documents ...string) *policy.Set {
	return policy.Compile([]policy.File{{Name: "all.yaml", Data: []byte(strings.Join(documents, "---\n"))}})
}

// matches tells whether a policy with the glob speaks about image.
func matches(t testing.TB, glob, image string) bool {
	t.Helper()
	set := compile(document("p", glob))
	for _, p := range set.Policies() {
		if p.Unusable() != "" {
			t.Fatalf("%s: %s", glob, p.Unusable())
		}
	}
	img, err := policy.ParseImage(image)
	if err != nil {
		t.Fatal(err)
	}
	return len(set.Match(img, policy.Facts{})) > 0
}

func TestGlob(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		glob, image string
		want        bool
	}{
		// As the policy controller has it.
		{"index.docker.io/library/foo:latest", "foo", true}, {"index.docker.io/library/foo:*", "foo", true},
		{"index.docker.io/library/*", "foo", true}, {"index.docker.io/library/*:latest", "foo", true},
		{"index.docker.io/*/*", "foo", true}, {"index.docker.io/**", "foo", true}, {"index.docker.**", "foo", true},
		{"inde**", "foo", true}, {"**", "foo", true}, {"foo", "foo", true}, {"foo*", "foo", true}, {"foo**", "foo", true},
		{"index.docker.io/myuser/myapp:latest", "myuser/myapp", true}, {"index.docker.io/*/*", "myuser/myapp", true},
		{"myuser/myapp", "myuser/myapp", true}, {"ghcr.io/*/*", "ghcr.io/foo/bar", true}, {"ghcr.io/**", "ghcr.io/foo/bar", true},
		{"ghcr.io/*/*", "ghcr.io/foo", false}, {"ghcr.io/**", "ghcr.io/foo", true}, {"ghc**", "ghcr.io/foo", true},
		{"*/**", "ghcr.io/foo", true}, {"ghcr.io/foo*", "ghcr.io/foo", true}, {"ghcr.io/foo", "prefix-ghcr.io/foo", false},
		{"ghcr.io/foo", "ghcr.io/foo-suffix", false}, {"ghcr.io/**", "ghcrxio.example/foo", false}, {"*", "foo", true}, {"*/*", "myuser/myapp", true},
		{"*", "ghcr.io/foo", false}, {"*/*", "ghcr.io/foo", false},

		// Digests, tags, ports.
		{"ghcr.io/org/*", "ghcr.io/org/app@" + zeros, true}, {"ghcr.io/org/app:v1", "ghcr.io/org/app:v1", true},
		{"ghcr.io/org/app:v1", "ghcr.io/org/app:v1@" + zeros, false}, {"ghcr.io/org/app", "ghcr.io/org/app:v1", false},
		{"ghcr.io/org/app", "ghcr.io/org/app", true}, {"ghcr.io/org/*", "ghcr.io/org/team/app", false},
		{"localhost:5000/**", "localhost:5000/a", true}, {"127.0.0.1:*/**", "127.0.0.1:34567/a@" + zeros, true},

		// A pod does not choose its policy by its spelling.
		{"ghcr.io/**", "GHCR.io/org/app", true}, {"ghcr.io/**", "ghcr.io:443/org/app", true}, {"ghcr.io/**", "ghcr.io:8443/org/app", false},
		{"index.docker.io/library/*", "docker.io/nginx", true}, {"index.docker.io/library/*", "registry-1.docker.io/library/nginx", true},
		{"index.docker.io/library/*", "registry.hub.docker.com/library/nginx", true}, {"index.docker.io/library/*", "registry-1.docker.io:443/nginx", true},
		{"docker.io/**", "nginx", false}, {"docker.io/**", "docker.io/library/nginx", true}, {"ghcr.io:443/**", "ghcr.io/org/app", false},

		// Look-alikes.
		{"ghcr.io/**", "ghcr.io.example.net/org/app", false}, {"ghcr.io/**", "evil.example/ghcr.io/org/app", false},
		{"ghcr.io/org/**", "ghcr.io/organisation/app", false}, {"*.example.com/**", "a.example.com/x", true}, {"*.example.com/**", "a.example.net/b.example.com/x", false},
	} {
		if got := matches(t, row.glob, row.image); got != row.want {
			t.Errorf("%s on %s: %t, want %t", row.glob, row.image, got, row.want)
		}
	}
}

func TestGlobDoubts(t *testing.T) {
	t.Parallel()
	for glob, want := range map[string]string{
		"docker.io/**":               "only pods that spell",
		"registry-1.docker.io/a/b:*": "only pods that spell",
		"index.docker.io/nginx":      "library/",
		"https://ghcr.io/**":         "can never match",
		"ghcr.io/":                   "can never match",
		"/app":                       "can never match",
		"ghcr.io/Org/**":             "can never match",
		"GHCR.io/**":                 "lower case",
		"ghcr.io/org/app":            "neither tag nor digest",
		"ghcr.io*/**":                "hosts of other people",
		"ghcr.io**":                  "hosts of other people",
		"*":                          "Docker Hub only",
		"*/*":                        "Docker Hub only",
	} {
		set := compile(document("p", glob))
		problems := set.Problems()
		if len(problems) == 0 || !problems[0].Warning || !strings.Contains(problems[0].Text, want) {
			t.Errorf("%s: %v, want a warning of %q", glob, problems, want)
		}
		if set.Policies()[0].Unusable() != "" {
			t.Errorf("%s: unusable", glob)
		}
	}
	for _, glob := range []string{"**", "ghcr.io/**", "ghcr.io/org/app:v1", "ghcr.io/org/app*", "index.docker.io/library/**", "localhost:5000/**", "ghcr.io/org/app:V1-RC", "*.example.com/**"} {
		if problems := compile(document("p", glob)).Problems(); len(problems) > 0 {
			t.Errorf("%s: %v", glob, problems)
		}
	}
}

// FuzzGlob holds the compiled glob against a matcher that is slow and plain.
func FuzzGlob(f *testing.F) {
	for _, s := range [][2]string{{"ghcr.io/**", "ghcr.io/a/b"}, {"**/app:*", "x.io/app:v1"}, {"a*b**c", "aXb/c"}, {"***", "a"}, {"*", "nginx"}, {"[a]", "a"}, {"ghcr.io/a+", "ghcr.io/aa"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, glob, image string) {
		if len(glob) > 64 || len(image) > 128 || strings.ContainsAny(glob, "'\n\r") {
			return
		}
		img, err := policy.ParseImage(image)
		if err != nil {
			return
		}
		set := compile(document("p", glob))
		got := len(set.Match(img, policy.Facts{})) > 0
		if set.Policies()[0].Unusable() != "" {
			if !got {
				t.Fatalf("%q cannot be read, and does not name %q", glob, image)
			}
			return
		}
		pattern := glob
		switch glob {
		case "*":
			pattern = "index.docker.io/library/*"
		case "*/*":
			pattern = "index.docker.io/*/*"
		}
		want := plainMatch(pattern, img.Name()) || plainMatch(pattern, image)
		// Docker Hub's other names and the default port may add matches; nothing
		// takes one away.
		if want && !got || got && !want && !strings.Contains(img.Name(), "docker") && !strings.Contains(img.Name(), ":443/") {
			t.Fatalf("%q on %q: %t, want %t", glob, image, got, want)
		}
	})
}

func plainMatch(glob, s string) bool {
	// reach[i]: the glob so far matches s[:i].
	reach := make([]bool, len(s)+1)
	reach[0] = true
	for glob != "" {
		next := make([]bool, len(s)+1)
		switch {
		case strings.HasPrefix(glob, "**"):
			glob = glob[2:]
			for i, open := 0, false; i <= len(s); i++ {
				open = open || reach[i]
				next[i] = open
			}
		case glob[0] == '*':
			glob = glob[1:]
			for i, open := 0, false; i <= len(s); i++ {
				if i > 0 && s[i-1] == '/' {
					open = false
				}
				open = open || reach[i]
				next[i] = open
			}
		default:
			for i := range s {
				next[i+1] = reach[i] && s[i] == glob[0]
			}
			glob = glob[1:]
		}
		reach = next
	}
	return reach[len(s)]
}
