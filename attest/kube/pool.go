package kube

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// Bounds of a pool. What falls out is only shared no longer.
const (
	poolTexts  = 1 << 15
	poolLabels = 1 << 13
	poolLength = 1 << 10 // longer texts are not shared
)

// pool holds texts and label sets that many pods have in common: namespaces,
// accounts, nodes, images. The thousand pods of a deployment share one copy.
type pool struct {
	mu    sync.Mutex // guards all below
	texts *simplelru.LRU[string, string]
	sets  *simplelru.LRU[string, map[string]string]
}

func newPool() (*pool, error) {
	texts, err := simplelru.NewLRU[string, string](poolTexts, nil)
	if err != nil {
		return nil, fmt.Errorf("making pool: %w", err)
	}
	sets, err := simplelru.NewLRU[string, map[string]string](poolLabels, nil)
	if err != nil {
		return nil, fmt.Errorf("making pool: %w", err)
	}
	return &pool{texts: texts, sets: sets}, nil
}

// text returns the shared copy of s.
func (p *pool) text(s string) string {
	if s == "" || len(s) > poolLength {
		return s
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if shared, ok := p.texts.Get(s); ok {
		return shared
	}
	p.texts.Add(s, s)
	return s
}

// labels returns the shared copy of set, which nobody may change.
func (p *pool) labels(set map[string]string) map[string]string {
	if len(set) == 0 {
		return nil
	}
	key := labelsKey(slices.Sorted(maps.Keys(set)), set)
	if len(key) > poolLength {
		return set
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if shared, ok := p.sets.Get(key); ok {
		return shared
	}
	p.sets.Add(key, set)
	return set
}
