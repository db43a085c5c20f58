package house_test

import (
	"path"
	"strings"
	"testing"
)

// order is who may not import whom: attest ← signing; attest ← ca ← sds ← cmd.
var order = []struct{ from, to, why string }{
	{"attest", "signing", "the vocabulary knows nobody"},
	{"attest", "ca", "the vocabulary knows nobody"},
	{"attest", "sds", "the vocabulary knows nobody"},
	{"attest", "cmd", "the vocabulary knows nobody"},
	{"signing", "ca", "who checks images holds no key"},
	{"signing", "sds", "who checks images speaks no protocol of proxies"},
	{"signing", "cmd", "cmd is the top"},
	{"ca", "signing", "who signs takes a grant and asks nobody"},
	{"ca", "sds", "who signs speaks no protocol of proxies"},
	{"ca", "cmd", "cmd is the top"},
	{"sds", "signing", "a front end holds no policy: images are the registrar's"},
	{"sds", "cmd", "cmd is the top"},
	{"cmd", "test", "the product does not rest on its tests"},
}

// subtree exceptions: a front end other than the registration authority issues
// nothing, and clusters are cmd's to wire.
var apart = []struct{ from, to, why string }{
	{"sds/proxies", "attest/kube", "a front end asks the registrar, not the cluster"},
	{"sds/istioca", "attest/kube", "a front end asks the registrar, not the cluster"},
	{"sds/ra", "attest/kube", "the registrar asks the cluster"},
	{"ca/ledger", "ca/journal", "each keeps its own files"},
	{"ca/journal", "ca/ledger", "each keeps its own files"},
}

// heavy are libraries that only these packages may link.
var heavy = []struct {
	library string
	allowed []string
	why     string
}{
	{"k8s.io/client-go", []string{"attest/kube", "signing/kube", "signing/admission", "ca/journal/kubestore", "ca/publish/kube", "sds/podcert", "cmd/internal"}, "40 modules, 15 MB"},
	{"k8s.io/apimachinery", []string{"attest/kube", "signing/kube", "signing/admission", "ca/journal/kubestore", "ca/publish/kube", "sds/podcert", "cmd/internal"}, "comes with client-go"},
	{"k8s.io/api", []string{"attest/kube", "signing/kube", "signing/admission", "ca/journal/kubestore", "ca/publish/kube", "sds/podcert", "cmd/internal"}, "comes with client-go"},
	{"github.com/sigstore/sigstore-go", []string{"signing/sigstore"}, "60 modules"},
	{"github.com/google/go-containerregistry", []string{"signing", "cmd/internal"}, "registries are signing's"},
	{"github.com/zmap", []string{"ca/lint/zlint"}, "slow, and large"},
	{"go.step.sm/crypto", []string{"ca/keys", "ca/ceremony"}, "key managers are opened in one place"},
	{"google.golang.org/grpc", []string{"sds", "cmd/internal"}, "front ends alone speak gRPC"},
	{"github.com/envoyproxy/go-control-plane", []string{"sds"}, "Envoy's types stay at Envoy's door"},
	{"istio.io", []string{"sds/istioca"}, "Istio's types stay at Istio's door"},
	{"github.com/spf13/cobra", []string{"cmd/internal"}, "the command line is cmd's"},
	{"github.com/spiffe/go-spiffe", []string{"attest", "ca", "sds"}, "identities are attest.Identity"},
}

// banned are libraries that are not used at all.
var banned = map[string]string{
	"github.com/spf13/viper":                       "configuration is strict, in one file",
	"github.com/stretchr/testify":                  "testing and go-cmp are enough",
	"sigs.k8s.io/controller-runtime":               "client-go is enough",
	"github.com/golang-jwt/jwt":                    "go-jose is the one library of tokens",
	"github.com/sigstore/cosign":                   "a hundred modules; it is a test tool",
	"github.com/hashicorp/golang-lru/v2/expirable": "it starts a goroutine that cannot be stopped",
}

func TestImports(t *testing.T) {
	for _, s := range all(t) {
		if within(s.pkg, "test") {
			continue
		}
		for _, name := range s.imports {
			if own, ok := strings.CutPrefix(name, module+"/"); ok {
				checkOwn(t, s, own)
				continue
			}
			checkForeign(t, s, name)
		}
	}
}

func checkOwn(t *testing.T, s source, own string) {
	t.Helper()
	for _, rule := range order {
		// Tests may look at the layers above to prove the whole.
		if within(s.pkg, rule.from) && within(own, rule.to) && !s.test {
			t.Errorf("%s imports %s: %s", s.name, own, rule.why)
		}
	}
	for _, rule := range apart {
		if within(s.pkg, rule.from) && within(own, rule.to) && !s.test {
			t.Errorf("%s imports %s: %s", s.name, own, rule.why)
		}
	}
	if forTests(own) && !s.test && !forTests(s.pkg) {
		t.Errorf("%s imports %s, which is for tests", s.name, own)
	}
}

func checkForeign(t *testing.T, s source, name string) {
	t.Helper()
	for library, why := range banned {
		if within(name, library) {
			t.Errorf("%s imports %s: %s", s.name, name, why)
		}
	}
	if s.test {
		return
	}
	for _, rule := range heavy {
		if within(name, rule.library) && !within(s.pkg, rule.allowed...) {
			t.Errorf("%s imports %s, which is for %s (%s)", s.name, name, strings.Join(rule.allowed, ", "), rule.why)
		}
	}
}

// forTests tells whether pkg is made for tests, such as attest/attesttest.
func forTests(pkg string) bool {
	return path.Base(pkg) == path.Base(path.Dir(pkg))+"test"
}
