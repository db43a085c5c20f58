package deploy_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// pages returns every document of the repository, by its path from the root.
func pages(t *testing.T) map[string]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	cmd := exec.CommandContext(ctx, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		if text, err := os.ReadFile(filepath.Join(root, name)); err == nil { // else removed, and not committed yet
			all[name] = string(text)
		}
	}
	if len(all) < 15 {
		t.Fatalf("only %d documents", len(all))
	}
	return all
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	code    = regexp.MustCompile("`([^`\n]+)`")
)

// anchor is what a heading is called in a link.
func anchor(heading string) string {
	text := strings.ToLower(strings.NewReplacer("`", "", "*", "").Replace(heading))
	text = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(text, "")
	return strings.ReplaceAll(text, " ", "-")
}

// TestLinks follows every link within the repository, to its heading.
func TestLinks(t *testing.T) {
	all := pages(t)
	for name, text := range all {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			path, part, _ := strings.Cut(m[1], "#")
			to := name
			if path != "" {
				to = filepath.Join(filepath.Dir(name), path)
			}
			if _, err := os.Stat(filepath.Join(root, to)); err != nil {
				t.Errorf("%s: %s: %v", name, m[1], err)
				continue
			}
			if part == "" {
				continue
			}
			var anchors []string
			for _, h := range heading.FindAllStringSubmatch(all[to], -1) {
				anchors = append(anchors, anchor(h[1]))
			}
			if !slices.Contains(anchors, part) {
				t.Errorf("%s: %s: there is no such heading; there are %q", name, m[1], anchors)
			}
		}
	}
}

// written are the pages that people write: what stands in them can get out of
// date.
func written(t *testing.T) map[string]string {
	t.Helper()
	all := pages(t)
	for name := range all {
		if strings.HasPrefix(name, "docs/cli/") || name == "docs/reasons.md" || name == "docs/configuration.md" {
			delete(all, name)
		}
	}
	return all
}

// TestDocumentsNameWhatThereIs looks up every setting, reason and command that a
// page names.
func TestDocumentsNameWhatThereIs(t *testing.T) {
	all := pages(t)
	setting := regexp.MustCompile(`^(mesh|metrics|attest|authority|images|ledger|bundle|log)(\.[a-z][A-Za-z]*)+$`)
	camel := regexp.MustCompile(`^[A-Z][a-z]+([A-Z][A-Za-z]*)+$`)
	// CamelCase words of others: Kubernetes, gRPC, Envoy, Istio, and our own types.
	foreign := strings.Fields(`ClusterImagePolicy CreateCertificate StreamSecrets OnRootMismatch TokenReview DenyError
		ConfigMap ClusterTrustBundle NetworkPolicy StatefulSet PermissionDenied InvalidArgument ResourceExhausted`)
	command := regexp.MustCompile(`hallmark ((?:ledger )?[a-z]+)`)
	for name, text := range written(t) {
		for _, m := range code.FindAllStringSubmatch(text, -1) {
			word := m[1]
			switch {
			case strings.HasSuffix(word, ".md") || strings.HasSuffix(word, ".key") || strings.HasSuffix(word, ".pub"):
			case setting.MatchString(word):
				if !strings.Contains(all["docs/configuration.md"], "`"+word+"`") && !strings.Contains(all["docs/configuration.md"], "## "+word+"\n") {
					t.Errorf("%s: there is no setting %s", name, word)
				}
			case camel.MatchString(word) && !slices.Contains(foreign, word):
				if !strings.Contains(all["docs/reasons.md"], "`"+word+"`") {
					t.Errorf("%s: there is no reason %s", name, word)
				}
			}
			if c := command.FindStringSubmatch(word); c != nil && strings.HasPrefix(word, "hallmark ") {
				if all["docs/cli/hallmark_"+strings.ReplaceAll(c[1], " ", "_")+".md"] == "" {
					t.Errorf("%s: there is no command %q", name, c[0])
				}
			}
		}
	}
}

// optional are metrics of what is off in the manifests: test/publish looks for
// those.
var optional = regexp.MustCompile(`^hallmark_bundle_(object|endpoint)`)

// metricsNamed are the metrics that documents name of what is on.
func metricsNamed(t *testing.T) map[string]string {
	t.Helper()
	names := map[string]string{}
	for page, text := range written(t) {
		for _, m := range regexp.MustCompile(`hallmark_[a-z_]+[a-z]`).FindAllString(text, -1) {
			if !optional.MatchString(m) {
				names[m] = page
			}
		}
	}
	return names
}
