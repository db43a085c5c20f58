package cluster_test

import (
	"context"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hallmark-ca/hallmark/test/bench/cluster"
)

func TestAPIServerComesBackWithItsData(t *testing.T) {
	start := time.Now()
	c := cluster.ForTest(t)
	t.Logf("ready after %v", time.Since(start).Round(10*time.Millisecond))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	before, err := c.Client().CoreV1().Namespaces().Get(ctx, "kube-system", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.StopAPI()
	if _, err := c.Client().CoreV1().Namespaces().Get(ctx, "kube-system", metav1.GetOptions{}); err == nil {
		t.Fatal("the API server answers after StopAPI")
	}
	url := c.URL()
	start = time.Now()
	if err := c.StartAPI(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("back after %v", time.Since(start).Round(10*time.Millisecond))
	after, err := c.Client().CoreV1().Namespaces().Get(ctx, "kube-system", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if after.UID != before.UID || c.URL() != url {
		t.Errorf("another cluster came back: kube-system %s then %s, at %s then %s", before.UID, after.UID, url, c.URL())
	}
}
