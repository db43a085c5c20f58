package config

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/hallmark-ca/hallmark/ca/bundle"
	"github.com/hallmark-ca/hallmark/ca/publish/kube"
)

type endpointFile struct {
	// The address of the SPIFFE bundle endpoint, HTTPS with TLS 1.2 or newer; empty
	// switches it off. It answers every path with the roots as a JWK set, to
	// anybody.
	Listen string `json:"listen"`
	// The endpoint's own certificate with its chain, PEM, relative to the state
	// directory or absolute: readers check it by the authorities of the web
	// (profile https_web). It is read again when it changes.
	CertificateFile string `json:"certificateFile"`
	// The key of that certificate, PEM, likewise.
	KeyFile string `json:"keyFile"`
	// How often readers are asked to come back; at least 1s. Before a new root
	// signs, five times this must have passed.
	RefreshHint string `json:"refreshHint"`
}

type objectsFile struct {
	// The ConfigMap that every namespace gets, such as istio-ca-root-cert for Istio's
	// proxies; empty writes none.
	ConfigMap string `json:"configMap"`
	// The key in that ConfigMap.
	Key string `json:"key"`
	// Which namespaces get it: a selector of their labels, as kubectl knows it;
	// empty means all.
	Namespaces string `json:"namespaces"`
	// The ClusterTrustBundle, such as istio.io:istiod-ca:root-cert for Istio's
	// proxies; empty writes none.
	TrustBundle string `json:"trustBundle"`
	// The signer of the ClusterTrustBundle, such as istio.io/istiod-ca, whose name
	// with a colon for each slash begins that of the object; empty is none.
	Signer string `json:"signer"`
	// Field managers whose objects become ours, such as pilot-discovery once istiod's
	// own CA is off. Objects of all others are left alone, and hold up a rotation.
	TakeOver []string `json:"takeOver"`
	// How long kubelets take until a changed object is in the files of their pods;
	// at least 1m. Before a new root signs, this must have passed.
	KubeletDelay string `json:"kubeletDelay"`
	// The namespace of the Lease under which one replica writes: Hallmark's own.
	LeaseNamespace string `json:"leaseNamespace"`
}

// Endpoint is the checked SPIFFE bundle endpoint.
type Endpoint struct {
	Listen          string
	CertificateFile string // absolute
	KeyFile         string // absolute
	RefreshHint     time.Duration
}

// Objects is into which objects of the cluster the bundle goes: one of ConfigMap
// and TrustBundle at least.
type Objects struct {
	ConfigMap      *kube.ConfigMap
	TrustBundle    *kube.TrustBundle
	TakeOver       []string
	KubeletDelay   time.Duration
	LeaseNamespace string
}

const (
	minKubeletDelay = time.Minute // kubelet looks at what pods mount once in one
	maxKubeletDelay = time.Hour
	maxTakeOver     = 16
	maxManager      = 64 // bytes; no more of a name is looked at
)

// endpoint returns nil where the endpoint is off.
func (c *checker) endpoint(f *endpointFile, dir string) *Endpoint {
	const path = "bundle.endpoint."
	hint := c.duration(path+"refreshHint", f.RefreshHint, bundle.MaxHint)
	if hint != 0 && hint < time.Second {
		c.add(path+"refreshHint", fmt.Sprintf("%s is below the floor", hint), "write at least 1s")
	}
	if f.Listen == "" {
		if f.CertificateFile != "" || f.KeyFile != "" {
			c.add(path+"listen", "there is a certificate, and no address to show it on", "write an address, such as :8443, or take the files out")
		}
		return nil
	}
	for _, file := range []struct{ path, value string }{{path + "certificateFile", f.CertificateFile}, {path + "keyFile", f.KeyFile}} {
		if file.value == "" {
			c.add(file.path, "no file is named", "name the PEM file: readers know the endpoint by its certificate")
		}
	}
	return &Endpoint{
		Listen: c.listen(path+"listen", f.Listen), CertificateFile: within(dir, f.CertificateFile), KeyFile: within(dir, f.KeyFile), RefreshHint: hint,
	}
}

// endpointAlone refuses an endpoint whose address or files are another's.
func (c *checker) endpointAlone(cfg *Config) {
	e := cfg.Bundle.Endpoint
	if e == nil {
		return
	}
	for _, other := range []struct{ path, listen string }{{"mesh.listen", cfg.Mesh.Listen}, {"metrics.listen", cfg.Metrics}} {
		if e.Listen == other.listen && !isAnyPort(e.Listen) {
			c.add("bundle.endpoint.listen", "it is "+other.path+", too", "write another port")
		}
	}
	for _, other := range []struct{ path, file string }{{"certificateFile", e.CertificateFile}, {"keyFile", e.KeyFile}} {
		if cfg.Bundle.File != "" && other.file != "" && same(cfg.Bundle.File, other.file) {
			c.add(bundlePath, fmt.Sprintf("%s is bundle.endpoint.%s, and would be overwritten", cfg.Bundle.File, other.path), bundleMend)
			return
		}
	}
}

// objects returns nil where nothing is written.
func (c *checker) objects(f *objectsFile, unsafeShort bool) *Objects {
	const path = "bundle.objects."
	o := &Objects{
		KubeletDelay: c.duration(path+"kubeletDelay", f.KubeletDelay, maxKubeletDelay),
		TakeOver:     c.takeOver(path+"takeOver", f.TakeOver), LeaseNamespace: f.LeaseNamespace,
	}
	if o.KubeletDelay != 0 && o.KubeletDelay < minKubeletDelay && !unsafeShort {
		c.add(path+"kubeletDelay", fmt.Sprintf("%s is below the floor", Short(o.KubeletDelay)), "write at least "+Short(minKubeletDelay))
	}
	if msgs := validation.IsDNS1123Label(f.LeaseNamespace); len(msgs) > 0 {
		c.add(path+"leaseNamespace", fmt.Sprintf("%q is no namespace", f.LeaseNamespace), "write the exact name of the namespace that Hallmark runs in")
	}
	if f.ConfigMap != "" {
		o.ConfigMap = c.configMap(path, f)
	} else if f.Namespaces != "" {
		c.add(path+"namespaces", "namespaces are selected, and nothing is written into them", "name the ConfigMap in bundle.objects.configMap, or take it out")
	}
	if f.TrustBundle != "" {
		o.TrustBundle = &kube.TrustBundle{Name: f.TrustBundle, Signer: f.Signer}
		if err := o.TrustBundle.Check(); err != nil {
			c.add(path+"trustBundle", err.Error(), "write both as Kubernetes wants them, such as trustBundle: example.com:mesh:roots and signer: example.com/mesh")
		}
	} else if f.Signer != "" {
		c.add(path+"signer", "there is a signer, and no ClusterTrustBundle of it", "name the object in bundle.objects.trustBundle, or take it out")
	}
	if o.ConfigMap == nil && o.TrustBundle == nil {
		if len(f.TakeOver) > 0 {
			c.add(path+"takeOver", "objects are taken over, and none is written", "name them in bundle.objects.configMap or bundle.objects.trustBundle, or take it out")
		}
		return nil
	}
	return o
}

func (c *checker) configMap(path string, f *objectsFile) *kube.ConfigMap {
	if msgs := validation.IsDNS1123Subdomain(f.ConfigMap); len(msgs) > 0 {
		c.add(path+"configMap", fmt.Sprintf("%q is no name of a ConfigMap", f.ConfigMap), "write a name in lower case, such as "+kube.IstioConfigMap)
	}
	if msgs := validation.IsConfigMapKey(f.Key); len(msgs) > 0 {
		c.add(path+"key", fmt.Sprintf("%q is no key of a ConfigMap", f.Key), "write letters, digits, dots, dashes and underscores, such as "+kube.IstioKey)
	}
	if _, err := labels.Parse(f.Namespaces); err != nil {
		c.add(path+"namespaces", err.Error(), "write a selector, such as istio-injection=enabled or team in (a, b)")
	}
	return &kube.ConfigMap{Name: f.ConfigMap, Key: f.Key, Namespaces: f.Namespaces}
}

func (c *checker) takeOver(path string, managers []string) []string {
	for i, name := range managers {
		if name == "" || len(name) > maxManager || strings.TrimSpace(name) != name {
			c.add(at(path, i), fmt.Sprintf("%q is no field manager", name), "write it as it stands in metadata.managedFields (kubectl get --show-managed-fields), such as pilot-discovery")
		}
	}
	if len(managers) > maxTakeOver {
		c.add(path, fmt.Sprintf("%d managers", len(managers)), fmt.Sprintf("write at most %d", maxTakeOver))
	}
	return slices.Clone(managers)
}
