package kube

import (
	"fmt"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"
)

const (
	// podReviewEvery is how long it takes until a pod may have one more token
	// reviewed; a quarter of Config.ReviewCache where that is shorter, so that
	// four tokens of one pod can always be reviewed anew. A kubelet gives a pod a
	// few tokens an hour, and all its streams share the review of each.
	podReviewEvery = 30 * time.Second
	// bucketsKept bounds the memory, at about 300 bytes each. A bucket that was
	// pushed out begins anew, full: to push one out takes that many other pods.
	bucketsKept = 1 << 16
)

// buckets bound the token reviews that one pod causes, by the pod's UID in a
// token that the cluster's own keys signed: nobody can empty another's. Without
// them, whoever may ask for tokens of one pod could hoard them, have us ask the
// API server for each, and spend what it allows us for everybody.
type buckets struct {
	burst int
	every time.Duration
	byPod *lru.Cache[string, *rate.Limiter]
}

func newBuckets(burst int, every time.Duration) (*buckets, error) {
	byPod, err := lru.New[string, *rate.Limiter](bucketsKept)
	if err != nil {
		return nil, fmt.Errorf("making buckets of pods: %w", err)
	}
	return &buckets{burst: burst, every: every, byPod: byPod}, nil
}

// take takes one review of the pod, and tells whether there was one.
func (b *buckets) take(podUID string, now time.Time) bool {
	limiter, ok := b.byPod.Get(podUID)
	if !ok {
		limiter = rate.NewLimiter(rate.Every(b.every), b.burst)
		if other, known, _ := b.byPod.PeekOrAdd(podUID, limiter); known {
			limiter = other
		}
	}
	return limiter.AllowN(now, 1)
}
