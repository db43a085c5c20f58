package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/memo"
)

const (
	keysPath = "/openid/v1/jwks"
	maxKeys  = 64
)

// keys are the public keys with which the cluster signs tokens. They are fetched
// now and then, and on a key id that is not among them, in one joined call and
// at most every Limits.KeysRetry; what was fetched last stays while the API
// server is away.
type keys struct {
	api     *api
	now     func() time.Time
	retry   time.Duration
	fetches *memo.Cache[struct{}, struct{}]

	mu      sync.RWMutex // guards all below
	byID    map[string][]jose.JSONWebKey
	fetched time.Time
	lastErr error // of the last fetch
}

func newKeys(a *api, limits Limits, now func() time.Time) (*keys, error) {
	k := &keys{api: a, now: now, retry: limits.KeysRetry}
	var err error
	k.fetches, err = memo.New[struct{}, struct{}](memo.Config{
		Size: 1, NegativeSize: 1, Negative: limits.KeysRetry, Running: 1, Timeout: limits.CallTime, Now: now,
	})
	return k, err
}

// find returns the keys that go by id.
func (k *keys) find(ctx context.Context, id string) ([]jose.JSONWebKey, error) {
	if found, _ := k.get(id); len(found) > 0 {
		return found, nil
	}
	if id == "" {
		return nil, attest.Deny(attest.TokenKeyUnknown, "", "the token names no key")
	}
	_, err := k.fetches.Do(ctx, struct{}{}, k.fetch)
	found, some := k.get(id)
	switch {
	case len(found) > 0:
		return found, nil
	case err != nil || !some:
		// Whether the cluster has the key now is not known.
		return nil, attest.Deny(attest.APIServerAway, "", "key id %q is not stored, and the keys cannot be fetched: %v", attest.Escape(id), err)
	}
	return nil, attest.Deny(attest.TokenKeyUnknown, "", "key id %q", attest.Escape(id))
}

func (k *keys) get(id string) (found []jose.JSONWebKey, some bool) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.byID[id], len(k.byID) > 0
}

// fetch asks the API server. The answer is remembered for as long as nobody may
// ask again.
func (k *keys) fetch(ctx context.Context) memo.Answer[struct{}] {
	byID, err := fetchKeys(ctx, k.api)
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	k.lastErr = err
	if err == nil {
		k.byID, k.fetched = byID, now
	}
	return memo.Answer[struct{}]{Err: err, Until: now.Add(k.retry)}
}

// refresh fetches whatever was fetched before.
func (k *keys) refresh(ctx context.Context) error {
	k.fetches.Forget(struct{}{})
	_, err := k.fetches.Do(ctx, struct{}{}, k.fetch)
	return err
}

// state returns when the stored keys were fetched, zero if there are none, and
// what is wrong with the last fetch.
func (k *keys) state() (fetched time.Time, err error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.fetched, k.lastErr
}

// fetchKeys reads the key set (RFC 7517). A key of a kind that is not known here
// is passed over: a token that needs it is refused by its key id.
func fetchKeys(ctx context.Context, a *api) (map[string][]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := a.call(ctx, http.MethodGet, keysPath, nil, &set); err != nil {
		return nil, fmt.Errorf("fetching keys: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("fetching keys: there are %d, at most %d are taken", len(set.Keys), maxKeys)
	}
	byID := map[string][]jose.JSONWebKey{}
	for _, raw := range set.Keys {
		var key jose.JSONWebKey
		if key.UnmarshalJSON(raw) != nil || !key.Valid() || !key.IsPublic() || key.KeyID == "" || key.Use != "" && key.Use != "sig" {
			continue
		}
		byID[key.KeyID] = append(byID[key.KeyID], key)
	}
	if len(byID) == 0 {
		return nil, errors.New("fetching keys: none of them can be used")
	}
	return byID, nil
}
