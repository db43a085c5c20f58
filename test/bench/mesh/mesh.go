// Package mesh puts the bench together: an API server, a registry with signed
// and unsigned images, a namespace with a node and pods, Hallmark with its gate
// closed to what is not signed, and Envoys with the pods' tokens and nothing
// else. The demo and the end-to-end tests stand on it.
//
// Everything of a mesh lies in one directory and ends with [Mesh.Close]. Methods
// may be called concurrently, but for Close.
package mesh

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hallmark-ca/hallmark/test/bench/caller"
	"github.com/hallmark-ca/hallmark/test/bench/cluster"
	"github.com/hallmark-ca/hallmark/test/bench/envoy"
	"github.com/hallmark-ca/hallmark/test/bench/hallmark"
	"github.com/hallmark-ca/hallmark/test/bench/pods"
	"github.com/hallmark-ca/hallmark/test/bench/registry"
	"github.com/hallmark-ca/hallmark/test/sign"
)

// Config says what to put together.
type Config struct {
	Dir string // an existing directory for all of it
	// Cluster is an API server to share; nil: one of its own.
	Cluster *cluster.Cluster
	// Namespace is where the pods live; "": one with a name of its own.
	Namespace string
	// NoReferrers makes a registry without the referrers API.
	NoReferrers bool
	// Images is the image gate; "": enforce.
	Images string
	// Settings change Hallmark's configuration, as [hallmark.Config] says.
	Settings map[string]any
	// Progress is told what begins; nil: nobody.
	Progress func(what string)
}

// Mesh is all of it. Hallmark is founded and not started.
type Mesh struct {
	Cluster   *cluster.Cluster
	Registry  *registry.Registry
	Hallmark  *hallmark.Server
	Key       *sign.Key // the policy's key
	Namespace string
	Node      *corev1.Node

	cfg     Config
	closers []func() // called last to first

	mu       sync.Mutex // guards what follows
	accounts map[string]*corev1.ServiceAccount
	envoys   int
}

// New puts a mesh together, up to `hallmark init`. Close must be called, also
// after an error, with which it returns what there is.
func New(ctx context.Context, cfg Config) (*Mesh, error) {
	if cfg.Progress == nil {
		cfg.Progress = func(string) {}
	}
	if cfg.Images == "" {
		cfg.Images = "enforce"
	}
	m := &Mesh{cfg: cfg, accounts: map[string]*corev1.ServiceAccount{}}
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"building hallmark", func(ctx context.Context) error { _, err := hallmark.Binary(ctx); return err }},
		{"starting etcd and kube-apiserver", m.startCluster},
		{"starting an OCI registry", m.startRegistry},
		{"making a namespace and a node", m.makePlace},
		{"founding an authority", m.found},
	} {
		cfg.Progress(step.what)
		if err := step.do(ctx); err != nil {
			return m, err
		}
	}
	return m, nil
}

func (m *Mesh) startCluster(ctx context.Context) error {
	if m.Cluster = m.cfg.Cluster; m.Cluster != nil {
		return nil
	}
	dir, err := m.subdirectory("cluster")
	if err != nil {
		return err
	}
	c, err := cluster.Start(ctx, cluster.Config{Dir: dir})
	if err != nil {
		return err
	}
	m.Cluster = c
	m.closers = append(m.closers, c.Close)
	return nil
}

func (m *Mesh) startRegistry(context.Context) error {
	r, err := registry.Start(!m.cfg.NoReferrers)
	if err != nil {
		return err
	}
	m.Registry = r
	m.closers = append(m.closers, r.Close)
	m.Key, err = sign.NewKey()
	return err
}

func (m *Mesh) makePlace(ctx context.Context) error {
	var err error
	if m.Namespace = m.cfg.Namespace; m.Namespace == "" {
		m.Namespace, err = pods.Namespace(ctx, m.Cluster.Client(), "mesh")
	} else {
		_, err = m.Cluster.Client().CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: m.Namespace}}, metav1.CreateOptions{})
	}
	if err != nil {
		return fmt.Errorf("making a namespace: %w", err)
	}
	m.Node, err = pods.Node(ctx, m.Cluster.Client(), "node-"+m.Namespace)
	return err
}

func (m *Mesh) found(ctx context.Context) error {
	kubeconfig, err := m.Cluster.InstallHallmark(ctx)
	if err != nil {
		return err
	}
	policies, err := m.subdirectory("policies")
	if err != nil {
		return err
	}
	if err := m.SetPolicy("signed", Policy("signed", m.Registry.Addr()+"/**", m.Key)); err != nil {
		return err
	}
	dir, err := m.subdirectory("hallmark")
	if err != nil {
		return err
	}
	m.Hallmark, err = hallmark.New(ctx, hallmark.Config{
		Dir: dir, Kubeconfig: kubeconfig, Images: m.cfg.Images, Policies: policies,
		Registries: []string{m.Registry.Addr()}, Settings: m.cfg.Settings,
	})
	if err == nil {
		m.closers = append(m.closers, m.Hallmark.Close)
	}
	return err
}

// Close ends everything, the last started first. The directory stays.
func (m *Mesh) Close() {
	for len(m.closers) > 0 {
		last := len(m.closers) - 1
		m.closers[last]()
		m.closers = m.closers[:last]
	}
}

// Defer has Close call f, before it ends what there was before.
func (m *Mesh) Defer(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closers = append(m.closers, f)
}

// SetPolicy writes a file into the folder of policies.
func (m *Mesh) SetPolicy(name, yaml string) error {
	if err := os.WriteFile(filepath.Join(m.cfg.Dir, "policies", name+".yaml"), []byte(yaml), 0o600); err != nil {
		return fmt.Errorf("writing policy %s: %w", name, err)
	}
	return nil
}

// Policy is a ClusterImagePolicy: images that match the glob must carry a
// signature of one of the keys.
func Policy(name, glob string, keys ...*sign.Key) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata:\n  name: %s\nspec:\n  images:\n  - glob: %q\n  authorities:\n", name, glob)
	for i, k := range keys {
		pub, err := k.PublicPEM()
		if err != nil {
			panic(err) // a P-256 key that was made here can be encoded
		}
		fmt.Fprintf(&b, "  - name: key-%d\n    key:\n      hashAlgorithm: sha256\n      data: |\n        %s\n", i, strings.ReplaceAll(strings.TrimSpace(string(pub)), "\n", "\n        "))
	}
	return b.String()
}

// Signed pushes a new image and signs it in both formats.
func (m *Mesh) Signed(ctx context.Context, repo string) (registry.Image, error) {
	img, err := m.Registry.Push(repo, "signed")
	if err != nil {
		return img, err
	}
	_, err = sign.Bundle(ctx, img.Ref, m.Key)
	return img, errors.Join(err, sign.Legacy(ctx, img.Ref, m.Key))
}

// Unsigned pushes a new image and leaves it so.
func (m *Mesh) Unsigned(repo string) (registry.Image, error) {
	return m.Registry.Push(repo, "unsigned")
}

// Pod is a pod of the mesh.
type Pod struct {
	*corev1.Pod
	Account *corev1.ServiceAccount

	mesh *Mesh
}

// Identity is the SPIFFE ID of an account of the mesh's namespace.
func (m *Mesh) Identity(account string) string {
	return "spiffe://" + hallmark.TrustDomain + "/ns/" + m.Namespace + "/sa/" + account
}

// Account returns a service account of the mesh's namespace, made at need.
func (m *Mesh) Account(ctx context.Context, name string) (*corev1.ServiceAccount, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a := m.accounts[name]; a != nil {
		return a, nil
	}
	a, err := pods.Account(ctx, m.Cluster.Client(), m.Namespace, name)
	if err == nil {
		m.accounts[name] = a
	}
	return a, err
}

// Run makes a pod that runs the containers, on the mesh's node; name is also
// its service account's.
func (m *Mesh) Run(ctx context.Context, name string, containers ...pods.Container) (*Pod, error) {
	return m.RunAs(ctx, name, name, containers...)
}

// RunAs is Run under another account.
func (m *Mesh) RunAs(ctx context.Context, name, account string, containers ...pods.Container) (*Pod, error) {
	a, err := m.Account(ctx, account)
	if err != nil {
		return nil, err
	}
	p, err := pods.Run(ctx, m.Cluster.Client(), pods.Spec{
		Namespace: m.Namespace, Name: name, Account: account, Node: m.Node.Name, Containers: containers,
	})
	if err != nil {
		return nil, err
	}
	return m.As(p, a), nil
}

// As makes a pod of the mesh of one that was made elsewhere.
func (m *Mesh) As(p *corev1.Pod, a *corev1.ServiceAccount) *Pod {
	return &Pod{Pod: p, Account: a, mesh: m}
}

// Identity is the pod's SPIFFE ID.
func (p *Pod) Identity() string { return p.mesh.Identity(p.Account.Name) }

// Envoy starts a sidecar of the pod, which is killed when ctx ends. What cfg leaves out of Dir, Hallmark,
// Bundle and Token is filled in: the pod's own token, of an hour.
func (p *Pod) Envoy(ctx context.Context, cfg envoy.Config) (*envoy.Envoy, error) {
	m := p.mesh
	m.mu.Lock()
	m.envoys++
	name := fmt.Sprintf("envoy-%d-%s", m.envoys, p.Name)
	m.mu.Unlock()
	var err error
	if cfg.Dir == "" {
		if cfg.Dir, err = m.subdirectory(name); err != nil {
			return nil, err
		}
	}
	if cfg.Token == "" {
		if cfg.Token, err = p.Token(ctx); err != nil {
			return nil, err
		}
	}
	cfg.Hallmark, cfg.Bundle = m.Hallmark.Addr(), m.Hallmark.Bundle()
	e, err := envoy.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	m.Defer(e.Close)
	return e, nil
}

// Dial connects to Hallmark as a proxy does.
func (m *Mesh) Dial() (caller.Conn, error) {
	cfg, err := caller.TLS(m.Hallmark.Bundle(), hallmark.ServerName)
	if err != nil {
		return caller.Conn{}, err
	}
	c, err := caller.Dial(m.Hallmark.Addr(), cfg)
	if err == nil {
		m.Defer(c.Close)
	}
	return c, err
}

func (m *Mesh) subdirectory(name string) (string, error) {
	dir := filepath.Join(m.cfg.Dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("making a directory: %w", err)
	}
	return dir, nil
}
