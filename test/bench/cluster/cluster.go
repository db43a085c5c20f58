// Package cluster runs a Kubernetes API server with its etcd: the real ones,
// alone. There is no scheduler, no controller and no kubelet; package pods does
// what those would.
//
// The API server can be taken away and brought back at the same address with
// the same data ([Cluster.StopAPI], [Cluster.StartAPI]). Its key for
// service-account tokens is at hand as [Cluster.Tokens], for tokens that
// TokenRequest would not give: of seconds, expired, of another audience.
//
// A Cluster's methods may be called concurrently, but for StopAPI, StartAPI
// and Close.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/hallmark-ca/hallmark/test/bench/port"
	"github.com/hallmark-ca/hallmark/test/bench/proc"
	"github.com/hallmark-ca/hallmark/test/tools"
)

const (
	// Issuer is the iss of the cluster's service-account tokens.
	Issuer = "https://kubernetes.default.svc"

	startWithin = 90 * time.Second // it takes 3 to 5 s on an idle machine
)

// Cluster is a running etcd and, but between StopAPI and StartAPI, API server.
type Cluster struct {
	// Tokens signs as this API server does.
	Tokens *Signer

	dir       string
	etcdPort  *port.Port
	peerPort  *port.Port
	apiPort   *port.Port
	etcd, api *proc.Process
	client    kubernetes.Interface
	rest      *rest.Config
	extra     []string
	stop      context.CancelFunc
	life      context.Context
}

// Config says where and how.
type Config struct {
	Dir  string   // an existing directory for data, keys and logs
	Args []string // further arguments of kube-apiserver; a later one wins
}

// Start runs both and returns when the API server is ready. They are killed
// when ctx ends; Close must be called all the same.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("starting a cluster: %w", err)
	}
	c := &Cluster{dir: dir, extra: cfg.Args}
	c.life, c.stop = context.WithCancel(ctx)
	if err := c.start(); err != nil {
		c.Close()
		return nil, fmt.Errorf("starting a cluster: %w", err)
	}
	return c, nil
}

func (c *Cluster) start() error {
	for _, p := range []**port.Port{&c.etcdPort, &c.peerPort, &c.apiPort} {
		var err error
		if *p, err = port.Reserve(); err != nil {
			return err
		}
	}
	if err := c.makeKeys(); err != nil {
		return err
	}
	path, err := tools.Path("etcd")
	if err != nil {
		return err
	}
	c.etcd, err = proc.Start(c.life, proc.Config{Path: path, Log: c.file("etcd.log"), Args: []string{
		"--data-dir=" + c.file("etcd"), "--unsafe-no-fsync", "--log-level=warn", "--socket-reuse-port",
		"--listen-client-urls=http://" + c.etcdPort.Addr(), "--advertise-client-urls=http://" + c.etcdPort.Addr(),
		"--listen-peer-urls=http://" + c.peerPort.Addr(), "--initial-advertise-peer-urls=http://" + c.peerPort.Addr(),
		"--initial-cluster=default=http://" + c.peerPort.Addr(),
	}})
	if err != nil {
		return err
	}
	return c.StartAPI(c.life)
}

// StartAPI runs the API server and returns when it is ready. It is an error if
// it runs already.
func (c *Cluster) StartAPI(ctx context.Context) error {
	if c.api != nil {
		return errors.New("starting kube-apiserver: it runs already")
	}
	path, err := tools.Path("kube-apiserver")
	if err != nil {
		return err
	}
	// Its certificates are ours, so --cert-dir only keeps it from the default one.
	args := append([]string{
		"--etcd-servers=http://" + c.etcdPort.Addr(), "--cert-dir=" + c.file("cert-dir"),
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none",
		fmt.Sprintf("--secure-port=%d", c.apiPort.Number()), "--permit-port-sharing=true",
		"--tls-cert-file=" + c.file("api.crt"), "--tls-private-key-file=" + c.file("api.key"),
		"--client-ca-file=" + c.CAFile(),
		"--service-account-issuer=" + Issuer, "--api-audiences=" + Issuer,
		"--service-account-key-file=" + c.file("sa.pub"), "--service-account-signing-key-file=" + c.file("sa.key"),
		"--service-cluster-ip-range=10.96.0.0/24",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--runtime-config=certificates.k8s.io/v1beta1=true",
		"--feature-gates=PodCertificateRequest=true,ClusterTrustBundle=true,ClusterTrustBundleProjection=true",
	}, c.extra...)
	c.api, err = proc.Start(c.life, proc.Config{Path: path, Log: c.file("kube-apiserver.log"), Args: args})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	return c.api.Await(ctx, c.ready)
}

func (c *Cluster) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return c.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}

// StopAPI kills the API server, which would take up to a minute to end by
// itself. Connections to it are refused until StartAPI.
func (c *Cluster) StopAPI() {
	if c.api != nil {
		c.api.Kill()
		c.api = nil
	}
}

// Close kills both and waits for them. The directory stays.
func (c *Cluster) Close() {
	c.stop()
	for _, p := range []*proc.Process{c.api, c.etcd} {
		if p != nil {
			p.Stop()
		}
	}
	for _, p := range []*port.Port{c.apiPort, c.etcdPort, c.peerPort} {
		if p != nil {
			p.Close()
		}
	}
}

// Client acts as an administrator (system:masters), without a limit of rate.
func (c *Cluster) Client() kubernetes.Interface { return c.client }

// REST is a copy of the administrator's configuration.
func (c *Cluster) REST() *rest.Config { return rest.CopyConfig(c.rest) }

// Kubeconfig is the administrator's file.
func (c *Cluster) Kubeconfig() string { return c.file("admin.kubeconfig") }

// CAFile holds the authority of the API server's certificate, in PEM.
func (c *Cluster) CAFile() string { return c.file("ca.crt") }

// URL is the API server's, "https://127.0.0.1:port".
func (c *Cluster) URL() string { return "https://" + c.apiPort.Addr() }

// Log is the API server's log file.
func (c *Cluster) Log() string { return c.file("kube-apiserver.log") }

func (c *Cluster) file(name string) string { return filepath.Join(c.dir, name) }

func (c *Cluster) write(name string, b []byte) error {
	return os.WriteFile(c.file(name), b, 0o600)
}
