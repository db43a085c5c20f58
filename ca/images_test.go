package ca_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/ledger"
)

// TestPodOfManyContainersFillsNoLedger: who writes a pod chooses how many
// containers it has, and not how much disk each of its certificates takes; what
// was decided can be shown all the same.
func TestPodOfManyContainersFillsNoLedger(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name              string
		containers        int
		image             func(n int) string
		kept, alike, more int
	}{
		{"one image many times", 1200, func(int) string { return "registry.example/app@sha256:aa" }, 1, 1199, 0},
		{"many images", 1200, func(n int) string { return fmt.Sprintf("registry.example/app-%d@sha256:%064x", n, n) }, ledger.MaxImages, 0, 1200 - ledger.MaxImages},
		{"as many as are kept", ledger.MaxImages, func(n int) string { return fmt.Sprintf("registry.example/app-%d@sha256:%064x", n, n) }, ledger.MaxImages, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			td := attesttest.Domain(t, "cluster.local")
			authority := catest.New(t, td, time.Now, nil)
			cluster := attesttest.NewCluster(td, time.Now)
			pod := attesttest.Pod("shop", "many", "many", c.image(0))
			pod.Containers = nil
			for n := range c.containers {
				pod.Containers = append(pod.Containers, attest.Container{Name: fmt.Sprintf("c%d", n), Image: c.image(n), ImageID: c.image(n), Running: true})
			}
			registrar := attesttest.NewRegistrar(t, cluster, &attesttest.Gate{}, time.Now)
			grant := attesttest.Grant(t, registrar, cluster.Add(pod))
			if _, err := authority.Issue(t.Context(), grant, ca.Request{ID: "r", Door: "test", Key: catest.Key(t).Public()}); err != nil {
				t.Fatal(err)
			}
			intent := authority.Ledger.Intents()[0]
			text, err := json.Marshal(intent)
			if err != nil {
				t.Fatal(err)
			}
			if len(text) > 16<<10 || len(intent.Images) != c.kept || intent.Images[0].Alike != c.alike || intent.MoreImages != c.more {
				t.Errorf("%d bytes, %d images, the first with %d alike, %d more", len(text), len(intent.Images), intent.Images[0].Alike, intent.MoreImages)
			}
			if (intent.ImagesSHA256 != "") != (c.more > 0) {
				t.Errorf("hash %q", intent.ImagesSHA256)
			}
			if c.more == 0 {
				return
			}
			// Whoever has the pod can show that this is what was decided.
			all := slices.Clone(intent.Images)
			for n := c.kept; n < c.containers; n++ {
				all = append(all, intent.Images[0])
				last := &all[n]
				last.Container, last.Image, last.Digest = fmt.Sprintf("c%d", n), c.image(n), c.image(n)
			}
			if got := ledger.HashImages(all); got != intent.ImagesSHA256 {
				t.Errorf("the hash of all is %s, in the ledger %s", got, intent.ImagesSHA256)
			}
		})
	}
}
