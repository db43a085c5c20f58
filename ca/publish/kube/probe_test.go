package kube_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/publish/kube"
)

func config(t *testing.T, host string) kube.Config {
	t.Helper()
	td, err := attest.ParseTrustDomain("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	return kube.Config{
		REST: &rest.Config{Host: host}, Authority: catest.New(t, td, time.Now, nil).Authority,
		Namespace: "hallmark-system", ReplicaID: "a", KubeletDelay: kube.DefaultKubeletDelay,
		ConfigMap:   &kube.ConfigMap{Name: kube.IstioConfigMap, Key: kube.IstioKey},
		TrustBundle: &kube.TrustBundle{Name: kube.IstioTrustBundle, Signer: kube.IstioSigner},
		Registerer:  prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Now: time.Now,
	}
}

// TestVersions has API servers of three ages, which no bench has side by side: the
// newest version is taken, and none is said.
func TestVersions(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		served []string // versions that have ClusterTrustBundles
		want   string   // in the note or error
	}{
		{[]string{"v1", "v1beta1"}, "served as certificates.k8s.io/v1\n"},
		{[]string{"v1beta1"}, "served as certificates.k8s.io/v1beta1\n"},
		{nil, "serves no ClusterTrustBundles"},
	} {
		mux := http.NewServeMux()
		reply := func(w http.ResponseWriter, body string) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, body)
		}
		mux.HandleFunc("GET /apis/certificates.k8s.io/v1", func(w http.ResponseWriter, _ *http.Request) {
			kinds := `{"name":"certificatesigningrequests"}`
			if len(tc.served) == 2 {
				kinds += `,{"name":"clustertrustbundles"}`
			}
			reply(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"certificates.k8s.io/v1","resources":[`+kinds+`]}`)
		})
		if tc.served != nil {
			mux.HandleFunc("GET /apis/certificates.k8s.io/v1beta1", func(w http.ResponseWriter, _ *http.Request) {
				reply(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"certificates.k8s.io/v1beta1","resources":[{"name":"clustertrustbundles"}]}`)
			})
		}
		mux.HandleFunc("POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews", func(w http.ResponseWriter, _ *http.Request) {
			reply(w, `{"kind":"SelfSubjectAccessReview","apiVersion":"authorization.k8s.io/v1","status":{"allowed":true}}`)
		})
		for _, version := range tc.served {
			mux.HandleFunc("GET /apis/certificates.k8s.io/"+version+"/clustertrustbundles", func(w http.ResponseWriter, r *http.Request) {
				if got := r.URL.Query().Get("fieldSelector"); got != "metadata.name="+kube.IstioTrustBundle {
					t.Errorf("asked for %q", got)
				}
				reply(w, `{"kind":"ClusterTrustBundleList","apiVersion":"certificates.k8s.io/`+version+`","metadata":{},"items":[]}`)
			})
		}
		server := httptest.NewServer(mux)
		cfg := config(t, server.URL)
		cfg.ConfigMap = nil
		p, err := kube.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		for _, f := range p.Probe(t.Context()) {
			fmt.Fprintf(&said, "%s: %s%v\n", f.What, f.Note, f.Err)
		}
		server.Close()
		if text := strings.ReplaceAll(said.String(), "<nil>", ""); !strings.Contains(text, tc.want) {
			t.Errorf("served in %v: %s", tc.served, text)
		}
	}
}

func TestProbeOfNobody(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	p, err := kube.New(config(t, server.URL))
	if err != nil {
		t.Fatal(err)
	}
	found := p.Probe(t.Context())
	if len(found) != 1 || found[0].Err == nil || !strings.Contains(found[0].Mend, "bring the API server up") {
		t.Errorf("with nobody there: %+v", found)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*kube.Config){
		"nothing to write":      func(c *kube.Config) { c.ConfigMap, c.TrustBundle = nil, nil },
		"no authority":          func(c *kube.Config) { c.Authority = nil },
		"no namespace":          func(c *kube.Config) { c.Namespace = "" },
		"no delay":              func(c *kube.Config) { c.KubeletDelay = 0 },
		"a short Lease":         func(c *kube.Config) { c.Limits.Lease = time.Second },
		"a broken selector":     func(c *kube.Config) { c.ConfigMap.Namespaces = "a in" },
		"a broken name":         func(c *kube.Config) { c.ConfigMap.Name = "A_b" },
		"a broken key":          func(c *kube.Config) { c.ConfigMap.Key = "a/b" },
		"not the signer's name": func(c *kube.Config) { c.TrustBundle.Name = "istio.io:other:root-cert" },
		"no name after it":      func(c *kube.Config) { c.TrustBundle.Name = "istio.io:istiod-ca:" },
		"a signer with no path": func(c *kube.Config) { c.TrustBundle.Signer = "istio.io" },
		"a colon and no signer": func(c *kube.Config) { c.TrustBundle.Signer = "" },
	} {
		cfg := config(t, "http://127.0.0.1:1")
		change(&cfg)
		if _, err := kube.New(cfg); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	cfg := config(t, "http://127.0.0.1:1")
	cfg.TrustBundle = &kube.TrustBundle{Name: "plain-name"}
	if _, err := kube.New(cfg); err != nil {
		t.Errorf("without a signer: %v", err)
	}
}
