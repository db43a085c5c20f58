package ra

import (
	"fmt"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"

	"github.com/hallmark-ca/hallmark/attest"
)

// bucketEntries bounds the memory of who asked how often, at about 300 bytes
// each. One that was pushed out begins anew with a full bucket: who asks in a
// loop is never the oldest.
const bucketEntries = 1 << 16

// buckets hold one token bucket for each proxy instance. An instance is made of
// what the cluster says of a caller: nobody can choose another's bucket.
type buckets struct {
	rate    rate.Limit
	burst   int
	entries *lru.Cache[attest.Instance, *rate.Limiter]
}

func newBuckets(perSecond float64, burst int) (*buckets, error) {
	entries, err := lru.New[attest.Instance, *rate.Limiter](bucketEntries)
	if err != nil {
		return nil, fmt.Errorf("making buckets: %w", err)
	}
	return &buckets{rate: rate.Limit(perSecond), burst: burst, entries: entries}, nil
}

// take takes one token of the instance, and tells whether there was one.
func (b *buckets) take(instance attest.Instance, now time.Time) bool {
	limiter, ok := b.entries.Get(instance)
	if !ok {
		limiter = rate.NewLimiter(b.rate, b.burst)
		if other, known, _ := b.entries.PeekOrAdd(instance, limiter); known {
			limiter = other
		}
	}
	return limiter.AllowN(now, 1)
}
