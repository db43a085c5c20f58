package mesh

import (
	"context"
	"os"
	"testing"

	"github.com/hallmark-ca/hallmark/test/bench/cluster"
	"github.com/hallmark-ca/hallmark/test/tools"
)

// ForTest puts a mesh together on the package's shared API server (see
// [cluster.Shared]), starts Hallmark, and ends it all with the test. A test that
// takes the API server away gives a cluster of its own.
func ForTest(tb testing.TB, cfg Config) *Mesh {
	tb.Helper()
	tools.Need(tb, "etcd", "kube-apiserver", "envoy")
	if cfg.Cluster == nil {
		cfg.Cluster = cluster.Shared(tb)
	}
	cfg.Dir = tb.TempDir()
	m, err := New(context.Background(), cfg)
	tb.Cleanup(m.Close)
	if err == nil {
		tb.Cleanup(func() { showLog(tb, m.Hallmark.LogFile()) })
		err = m.Hallmark.Start(context.Background())
	}
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// showLog prints the end of a log of a test that failed.
func showLog(tb testing.TB, file string) {
	if !tb.Failed() {
		return
	}
	const most = 12 << 10
	b, err := os.ReadFile(file)
	if err != nil {
		tb.Logf("no log: %v", err)
		return
	}
	tb.Logf("end of hallmark's log:\n%s", b[max(0, len(b)-most):])
}
