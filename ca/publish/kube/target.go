package kube

import (
	"fmt"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Names under which Istio's proxies and charts expect the bundle.
const (
	IstioConfigMap   = "istio-ca-root-cert"
	IstioKey         = "root-cert.pem"
	IstioSigner      = "istio.io/istiod-ca"
	IstioTrustBundle = "istio.io:istiod-ca:root-cert"
)

// ConfigMap says where in every namespace the bundle is to be.
type ConfigMap struct {
	Name string // of the object
	Key  string // in its data
	// Namespaces selects by labels, in the notation of kubectl's --selector;
	// "" is all.
	Namespaces string
}

// TrustBundle says under what name the bundle is to be.
type TrustBundle struct {
	Name   string
	Signer string // "": none; else the name begins with it, a colon for each slash
}

// Check returns what is wrong with the names, by the API server's own rules.
func (b TrustBundle) Check() error {
	_, err := trustBundleTarget(&b)
	return err
}

// kind is what is watched.
type kind uint8

const (
	namespaces kind = iota
	configMaps
	trustBundles
	kinds // how many there are
)

// String returns the resource's name in the API.
func (k kind) String() string {
	return [...]string{"namespaces", "configmaps", "clustertrustbundles"}[k]
}

// target is one kind of object that the bundle is put into.
type target struct {
	kind     kind
	object   string // its kind as the API writes it
	name     string
	path     []string // of the content
	signer   string
	selector string // of namespaces
}

// key names one object of a target; of a ClusterTrustBundle the namespace is
// empty.
type key struct {
	kind      kind
	namespace string
}

func configMapTarget(c *ConfigMap) (*target, error) {
	if msgs := validation.IsDNS1123Subdomain(c.Name); len(msgs) > 0 {
		return nil, fmt.Errorf("name of the ConfigMap: %q: %s", c.Name, strings.Join(msgs, "; "))
	}
	if msgs := validation.IsConfigMapKey(c.Key); len(msgs) > 0 {
		return nil, fmt.Errorf("key of the ConfigMap: %q: %s", c.Key, strings.Join(msgs, "; "))
	}
	return &target{kind: configMaps, object: "ConfigMap", name: c.Name, path: []string{"data", c.Key}, selector: c.Namespaces}, nil
}

// trustBundleTarget enforces the API server's own rule of names: with a signer
// its name, a colon for each slash, and a colon begin it; without one there is no
// colon.
func trustBundleTarget(b *TrustBundle) (*target, error) {
	rest := b.Name
	if b.Signer == "" {
		if strings.Contains(b.Name, ":") {
			return nil, fmt.Errorf("name of the ClusterTrustBundle: %q has a colon, and no signer is named", b.Name)
		}
	} else {
		domain, path, ok := strings.Cut(b.Signer, "/")
		if !ok || path == "" || len(validation.IsDNS1123Subdomain(domain)) > 0 || strings.Contains(path, "/") {
			return nil, fmt.Errorf("signer of the ClusterTrustBundle: %q is not of the form example.com/name", b.Signer)
		}
		prefix := strings.ReplaceAll(b.Signer, "/", ":") + ":"
		if rest, ok = strings.CutPrefix(b.Name, prefix); !ok {
			return nil, fmt.Errorf("name of the ClusterTrustBundle: %q does not begin with %q, as that of signer %q has to", b.Name, prefix, b.Signer)
		}
	}
	if msgs := validation.IsDNS1123Subdomain(rest); len(msgs) > 0 {
		return nil, fmt.Errorf("name of the ClusterTrustBundle: %q: %s", rest, strings.Join(msgs, "; "))
	}
	return &target{kind: trustBundles, object: "ClusterTrustBundle", name: b.Name, path: []string{"spec", "trustBundle"}, signer: b.Signer}, nil
}

// reader is the name of an object in a report.
func (t *target) reader(namespace string) string {
	if t.kind == trustBundles {
		return "clustertrustbundle " + t.name
	}
	return "configmap " + namespace + "/" + t.name
}

// render returns what is applied. version is of the object that was decided on,
// "" where there was none.
func (t *target) render(at schema.GroupVersionResource, namespace, version string, w *wanted) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{}}
	u.SetAPIVersion(at.GroupVersion().String())
	u.SetKind(t.object)
	u.SetName(t.name)
	u.SetNamespace(namespace)
	u.SetResourceVersion(version)
	u.SetLabels(map[string]string{managedByLabel: manager})
	u.SetAnnotations(map[string]string{trustDomainMark: w.trustDomain, sequenceMark: strconv.FormatUint(w.sequence, 10)})
	content := map[string]any{t.path[1]: w.content}
	if t.signer != "" {
		content["signerName"] = t.signer
	}
	u.Object[t.path[0]] = content
	return u
}
