package ra_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/sds/ra"
)

// TestSamplerBoundsOneAndAll: one instance in a loop hides nothing of another,
// many together are bounded too, and what was left out is told.
func TestSamplerBoundsOneAndAll(t *testing.T) {
	t.Parallel()
	s, err := ra.NewSampler()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_000_000, 0)
	lines := 0
	for i := range 60_000 { // ten minutes
		if _, ok := s.Take("nack", attest.Instance{PodUID: "loop"}, now.Add(time.Duration(i)*10*time.Millisecond)); ok {
			lines++
		}
	}
	if lines < 10 || lines > 15 {
		t.Errorf("%d lines of one instance, want 5 and one a minute", lines)
	}
	now = now.Add(10 * time.Minute)
	if leftOut, ok := s.Take("nack", attest.Instance{PodUID: "other"}, now); !ok || leftOut != 0 {
		t.Errorf("another's first line: %v, %d left out", ok, leftOut)
	}
	if _, ok := s.Take("unproven", attest.Instance{PodUID: "loop"}, now); !ok {
		t.Error("another kind's first line was left out")
	}
	now = now.Add(time.Minute)
	if leftOut, ok := s.Take("nack", attest.Instance{PodUID: "loop"}, now); !ok || leftOut == 0 {
		t.Errorf("after a minute: %v, %d left out", ok, leftOut)
	}
	now, lines = now.Add(time.Hour), 0
	for i := range 100_000 {
		if _, ok := s.Take("nack", attest.Instance{PodUID: fmt.Sprint(i)}, now); ok {
			lines++
		}
	}
	if lines != 200 {
		t.Errorf("%d lines of all instances at once, want 200", lines)
	}
}
