package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-ca/hallmark/cmd/internal/config"
	"github.com/hallmark-ca/hallmark/signing"
)

// paths returns where the problems of err are.
func paths(t *testing.T, err error) []string {
	t.Helper()
	if err == nil {
		return nil
	}
	var problems config.Problems
	if !errors.As(err, &problems) {
		t.Fatalf("not a list of problems: %v", err)
	}
	var out []string
	for _, p := range problems {
		if p.What == "" || p.Mend == "" {
			t.Errorf("a problem without text or mend: %+v", p)
		}
		out = append(out, p.Path)
	}
	return out
}

func TestDefaultsAreValid(t *testing.T) {
	cfg, err := config.Parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.State != "/var/lib/hallmark" || cfg.Authority.LeafDefault != 6*time.Hour || cfg.Authority.IssuingLifetime != 72*time.Hour ||
		cfg.Attest.MaxStaleness != 6*time.Hour || cfg.Attest.ReviewCache != 10*time.Minute || cfg.Ledger.MaxBytes != 8<<30 ||
		cfg.Ledger.Retention != 14*24*time.Hour || cfg.Authority.RootLifetime != 5*365*24*time.Hour || cfg.Images.Issuance != signing.Audit {
		t.Errorf("the defaults are not those of the documents: %+v", cfg)
	}
	if want := "/var/lib/hallmark/keys/passphrase"; cfg.Authority.PassphraseFile != want {
		t.Errorf("passphrase file %s, want %s", cfg.Authority.PassphraseFile, want)
	}
}

// TestRenderedIsTheSame reads back what init writes: comments and values, and
// nothing else.
func TestRenderedIsTheSame(t *testing.T) {
	file := config.Defaults()
	file.State, file.TrustDomain = "/srv/a b", "example.org"
	file.Images.Namespaces = map[string]string{"kube-system": "disabled", "shop": "audit"}
	file.Mesh.IPs = []string{"10.0.0.1", "fd00::1"}
	text, err := config.Render(file)
	if err != nil {
		t.Fatal(err)
	}
	got, err := config.Parse(text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	want, err := config.Check(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.TrustDomain != want.TrustDomain || got.State != want.State || !cmp.Equal(got.Images, want.Images) || !cmp.Equal(got.Mesh, want.Mesh) || !cmp.Equal(got.Attest, want.Attest) {
		t.Errorf("read back: %+v\nwant: %+v", got, want)
	}
	settings := strings.Count(string(text), "\n")
	comments := 0
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			comments++
		}
	}
	if comments < settings/3 {
		t.Errorf("%d of %d lines are comments: init writes a commented file", comments, settings)
	}
}

// TestProblems holds each mistake against the path that it is reported under.
func TestProblems(t *testing.T) {
	for name, tc := range map[string]struct {
		yaml string
		want []string
	}{
		"unknown keys, at any depth":       {"trustdomain: a\nmesh: {port: 1}\nimages: {registries: {mirror: []}}\n", []string{"trustdomain", "mesh.port", "images.registries.mirror"}},
		"number for a duration":            {"attest: {maxStaleness: 600}\n", []string{"attest.maxStaleness"}},
		"several of a wrong kind":          {"attest: {maxStaleness: 600, audiences: istio-ca}\nmesh: 5\n", []string{"attest.maxStaleness", "attest.audiences", "mesh"}},
		"no unit":                          {"attest: {maxStaleness: '600'}\n", []string{"attest.maxStaleness"}},
		"days":                             {"ledger: {retention: 14d}\n", []string{"ledger.retention"}},
		"size without unit":                {"ledger: {maxBytes: '8000000000'}\n", []string{"ledger.maxBytes"}},
		"size that overflows":              {"ledger: {maxBytes: 9999999999TiB}\n", []string{"ledger.maxBytes"}},
		"ledger too small":                 {"ledger: {maxBytes: 1MiB}\n", []string{"ledger.maxBytes"}},
		"boolean words":                    {"replicaID: no\nclusterID: On\n", []string{"replicaID", "clusterID", "replicaID", "clusterID"}},
		"boolean word as a key":            {"images: {namespaces: {on: audit}}\n", []string{"images.namespaces.on"}},
		"boolean word in quotes":           {"replicaID: 'no'\n", nil},
		"doubled key":                      {"state: /a\nstate: /b\n", []string{""}},
		"no YAML":                          {"a: [", []string{""}},
		"a list":                           {"- a\n", []string{""}},
		"alias":                            {"replicaID: &a x\nclusterID: *a\n", []string{"clusterID"}},
		"relative state":                   {"state: here\n", []string{"state"}},
		"trust domain with a scheme":       {"trustDomain: spiffe://x\n", []string{"trustDomain"}},
		"no names":                         {"mesh: {names: [], ips: []}\n", []string{"mesh.names"}},
		"wildcard":                         {"mesh: {names: ['*.x']}\n", []string{"mesh.names[0]"}},
		"address with a port":              {"mesh: {ips: ['1.2.3.4:5']}\n", []string{"mesh.ips[0]"}},
		"one port for both":                {"mesh: {listen: ':1'}\nmetrics: {listen: ':1'}\n", []string{"metrics.listen"}},
		"host name to listen on":           {"mesh: {listen: 'localhost:1'}\n", []string{"mesh.listen"}},
		"the API server's audience":        {"attest: {audiences: ['https://kubernetes.default.svc']}\n", []string{"attest.audiences[0]"}},
		"that audience, on purpose":        {"attest: {audiences: ['https://kubernetes.default.svc'], unsafeAPIServerAudience: true}\n", nil},
		"no audience":                      {"attest: {audiences: []}\n", []string{"attest.audiences"}},
		"review cache too long":            {"attest: {reviewCache: 1h}\n", []string{"attest.reviewCache"}},
		"source address mode":              {"attest: {sourceAddress: maybe}\n", []string{"attest.sourceAddress"}},
		"leaf of seconds":                  {"authority: {leaf: {default: 10s, min: 5s}}\n", []string{"authority.leaf"}},
		"leaf of seconds, for tests":       {"authority: {issuingLifetime: 10m, leaf: {default: 10s, min: 5s, max: 1m, backDate: 0s}, unsafeShortLifetimes: true}\n", nil},
		"leaf above a day":                 {"authority: {issuingLifetime: 720h, leaf: {max: 48h}}\n", []string{"authority.leaf"}},
		"issuing CA shorter than its leaf": {"authority: {issuingLifetime: 24h}\n", []string{"authority.issuingLifetime"}},
		"root shorter than issuing CA":     {"authority: {rootLifetime: 100h}\n", []string{"authority.rootLifetime"}},
		"ledger forgets live leaves":       {"ledger: {retention: 1h}\n", []string{"ledger.retention"}},
		"enforce without policy":           {"images: {issuance: enforce}\n", []string{"images.policies"}},
		"enforce in one namespace":         {"images: {namespaces: {shop: enforce}}\n", []string{"images.policies"}},
		"enforce with policy":              {"images: {issuance: enforce, policies: /p}\n", nil},
		"pattern for a namespace":          {"images: {namespaces: {'kube-*': disabled}}\n", []string{"images.namespaces.kube-*"}},
		"account without namespace":        {"images: {infrastructure: {accounts: [ztunnel]}}\n", []string{"images.infrastructure.accounts[0]"}},
		"registry with a scheme":           {"images: {registries: {insecure: ['http://r']}}\n", []string{"images.registries.insecure[0]"}},
		"log level":                        {"log: {level: loud}\n", []string{"log.level"}},
		"everything at once":               {"trustDomain: A\nstate: x\nlog: {level: loud}\nnew: 1\n", []string{"new", "trustDomain", "state", "log.level"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.Parse([]byte(tc.yaml))
			got, want := paths(t, err), tc.want
			slices.Sort(got)
			slices.Sort(want)
			if !cmp.Equal(got, want) {
				t.Errorf("problems %v\nat %q, want %q", err, got, want)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	if _, err := config.Load(filepath.Join(t.TempDir(), "none.yaml")); err == nil || !strings.Contains(err.Error(), "hallmark init") {
		t.Errorf("a missing file: %v", err)
	}
	large := filepath.Join(t.TempDir(), "large.yaml")
	if err := os.WriteFile(large, make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(large); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("a large file: %v", err)
	}
}

// FuzzParse wants an answer, in bounded time, to whatever is written.
func FuzzParse(f *testing.F) {
	text, err := config.Render(config.Defaults())
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{string(text), "a: [", "- a", "x: &a [*a]", "? {a: b}\n: c", "mesh: {listen: 1}", "authority: {leaf: {min: 1e9h}}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := config.Parse(data)
		if (cfg == nil) == (err == nil) {
			t.Errorf("configuration %v and error %v", cfg, err)
		}
	})
}
