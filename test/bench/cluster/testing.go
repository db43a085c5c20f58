package cluster

import (
	"context"
	"os"
	"sync"
	"testing"

	"github.com/hallmark-ca/hallmark/test/tools"
)

// ForTest starts a cluster that ends with the test. Without its tools the test
// is skipped, or failed in CI.
func ForTest(tb testing.TB, args ...string) *Cluster {
	tb.Helper()
	tools.Need(tb, "etcd", "kube-apiserver")
	c, err := Start(context.Background(), Config{Dir: tb.TempDir(), Args: args})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	return c
}

var shared struct {
	sync.Mutex // guards what follows
	cluster    *Cluster
	dir        string
	err        error
}

// Shared is one cluster for all tests of a package, started when the first one
// asks for it. Each test should keep to a namespace of its own; whoever stops
// the API server wants [ForTest] instead. The package needs
//
//	func TestMain(m *testing.M) { os.Exit(cluster.Main(m)) }
func Shared(tb testing.TB) *Cluster {
	tb.Helper()
	tools.Need(tb, "etcd", "kube-apiserver")
	shared.Lock()
	defer shared.Unlock()
	if shared.cluster == nil && shared.err == nil {
		shared.dir, shared.err = os.MkdirTemp("", "hallmark-cluster-")
		if shared.err == nil {
			shared.cluster, shared.err = Start(context.Background(), Config{Dir: shared.dir})
		}
	}
	if shared.err != nil {
		tb.Fatal(shared.err)
	}
	return shared.cluster
}

// Main runs the tests and then ends the cluster that they shared.
func Main(m *testing.M) int {
	defer func() {
		shared.Lock()
		defer shared.Unlock()
		if shared.cluster != nil {
			shared.cluster.Close()
		}
		if shared.dir != "" {
			os.RemoveAll(shared.dir)
		}
	}()
	return m.Run()
}
