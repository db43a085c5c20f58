package config_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-ca/hallmark/ca/publish/kube"
	"github.com/hallmark-ca/hallmark/cmd/internal/config"
)

// TestPublishing holds the settings of publishers: off unless asked for, and
// each mistake under its own path.
func TestPublishing(t *testing.T) {
	t.Parallel()
	const files = "certificateFile: /a.crt, keyFile: /a.key"
	for name, tc := range map[string]struct {
		bundle string // without its braces
		more   string
		want   []string
	}{
		"endpoint":                    {bundle: "endpoint: {listen: ':8443', " + files + "}"},
		"endpoint without files":      {bundle: "endpoint: {listen: ':8443'}", want: []string{"bundle.endpoint.certificateFile", "bundle.endpoint.keyFile"}},
		"files without an address":    {bundle: "endpoint: {" + files + "}", want: []string{"bundle.endpoint.listen"}},
		"host name to listen on":      {bundle: "endpoint: {listen: 'a.example:1', " + files + "}", want: []string{"bundle.endpoint.listen"}},
		"the mesh port":               {bundle: "endpoint: {listen: ':15012', " + files + "}", want: []string{"bundle.endpoint.listen"}},
		"the metrics port":            {bundle: "endpoint: {listen: ':15014', " + files + "}", want: []string{"bundle.endpoint.listen"}},
		"any port":                    {bundle: "endpoint: {listen: '127.0.0.1:0', " + files + "}", more: "metrics: {listen: '127.0.0.1:0'}"},
		"hint too short":              {bundle: "endpoint: {refreshHint: 10ms}", want: []string{"bundle.endpoint.refreshHint"}},
		"hint of years":               {bundle: "endpoint: {refreshHint: 100000h}", want: []string{"bundle.endpoint.refreshHint"}},
		"bundle over the certificate": {bundle: "file: /a.crt, endpoint: {listen: ':8443', " + files + "}", want: []string{"bundle.file"}},
		"bundle over the key":         {bundle: "file: /a.key, endpoint: {listen: ':8443', " + files + "}", want: []string{"bundle.file"}},
		"profile":                     {bundle: "endpoint: {profile: https_spiffe}", want: []string{"bundle.endpoint.profile"}},

		"config map":                {bundle: "objects: {configMap: istio-ca-root-cert, namespaces: 'a in (b, c),!d'}"},
		"config map, bad name":      {bundle: "objects: {configMap: A_b}", want: []string{"bundle.objects.configMap"}},
		"config map, bad key":       {bundle: "objects: {configMap: a, key: a/b}", want: []string{"bundle.objects.key"}},
		"config map, no key":        {bundle: "objects: {configMap: a, key: ''}", want: []string{"bundle.objects.key"}},
		"bad selector":              {bundle: "objects: {configMap: a, namespaces: 'a in b'}", want: []string{"bundle.objects.namespaces"}},
		"selector alone":            {bundle: "objects: {namespaces: a=b}", want: []string{"bundle.objects.namespaces"}},
		"trust bundle":              {bundle: "objects: {trustBundle: roots}"},
		"trust bundle of a signer":  {bundle: "objects: {trustBundle: 'istio.io:istiod-ca:root-cert', signer: istio.io/istiod-ca}"},
		"not that signer's":         {bundle: "objects: {trustBundle: roots, signer: istio.io/istiod-ca}", want: []string{"bundle.objects.trustBundle"}},
		"colon without a signer":    {bundle: "objects: {trustBundle: 'a:b'}", want: []string{"bundle.objects.trustBundle"}},
		"signer alone":              {bundle: "objects: {signer: istio.io/istiod-ca}", want: []string{"bundle.objects.signer"}},
		"take over":                 {bundle: "objects: {configMap: a, takeOver: [pilot-discovery]}"},
		"take over nothing":         {bundle: "objects: {takeOver: [pilot-discovery]}", want: []string{"bundle.objects.takeOver"}},
		"managers without a name":   {bundle: "objects: {configMap: a, takeOver: ['', ' a', " + strings.Repeat("a", 65) + "]}", want: []string{"bundle.objects.takeOver[0]", "bundle.objects.takeOver[1]", "bundle.objects.takeOver[2]"}},
		"too many managers":         {bundle: "objects: {configMap: a, takeOver: [" + strings.Repeat("a, ", 17) + "]}", want: []string{"bundle.objects.takeOver"}},
		"kubelet too fast":          {bundle: "objects: {configMap: a, kubeletDelay: 1s}", want: []string{"bundle.objects.kubeletDelay"}},
		"kubelet fast, for tests":   {bundle: "objects: {configMap: a, kubeletDelay: 1s}", more: "authority: {unsafeShortLifetimes: true}"},
		"kubelet too slow":          {bundle: "objects: {configMap: a, kubeletDelay: 2h}", want: []string{"bundle.objects.kubeletDelay"}},
		"no namespace of the Lease": {bundle: "objects: {configMap: a, leaseNamespace: ''}", want: []string{"bundle.objects.leaseNamespace"}},
		"all at once": {
			bundle: "endpoint: {listen: x}, objects: {configMap: A, key: /, signer: a, leaseNamespace: a.b}",
			want:   []string{"bundle.endpoint.certificateFile", "bundle.endpoint.keyFile", "bundle.endpoint.listen", "bundle.objects.configMap", "bundle.objects.key", "bundle.objects.leaseNamespace", "bundle.objects.signer"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := config.Parse([]byte("bundle: {" + tc.bundle + "}\n" + tc.more + "\n"))
			got := paths(t, err)
			slices.Sort(got)
			if !cmp.Equal(got, tc.want) {
				t.Errorf("problems %v\nat %q, want %q", err, got, tc.want)
			}
		})
	}
}

func TestPublishingChecked(t *testing.T) {
	t.Parallel()
	cfg, err := config.Parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Bundle.Endpoint != nil || cfg.Bundle.Objects != nil {
		t.Errorf("published without being asked: %+v", cfg.Bundle)
	}
	dir := t.TempDir()
	cfg, err = config.Parse([]byte("state: " + dir + `
bundle:
  endpoint: {listen: ':8443', certificateFile: web.crt, keyFile: /b/web.key}
  objects: {configMap: istio-ca-root-cert, namespaces: mesh=a, trustBundle: 'istio.io:istiod-ca:root-cert', signer: istio.io/istiod-ca, takeOver: [pilot-discovery]}
`))
	if err != nil {
		t.Fatal(err)
	}
	endpoint := &config.Endpoint{Listen: ":8443", CertificateFile: filepath.Join(dir, "web.crt"), KeyFile: "/b/web.key", RefreshHint: 5 * time.Minute}
	if diff := cmp.Diff(endpoint, cfg.Bundle.Endpoint); diff != "" {
		t.Errorf("endpoint (-want +got):\n%s", diff)
	}
	objects := &config.Objects{
		ConfigMap:   &kube.ConfigMap{Name: kube.IstioConfigMap, Key: kube.IstioKey, Namespaces: "mesh=a"},
		TrustBundle: &kube.TrustBundle{Name: kube.IstioTrustBundle, Signer: kube.IstioSigner},
		TakeOver:    []string{"pilot-discovery"}, KubeletDelay: kube.DefaultKubeletDelay, LeaseNamespace: "hallmark-system",
	}
	if diff := cmp.Diff(objects, cfg.Bundle.Objects); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
}
