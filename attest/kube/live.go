package kube

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/memo"
)

const (
	foundFor   = time.Second      // an object that was looked up may change
	missingFor = 10 * time.Second // a UID never comes back
)

// lookupKey names one object by its UID as well: the answer that it is another
// one, or gone, stays true.
type lookupKey struct {
	kind kind
	name name
	uid  string
}

// found is what a GET answered; the zero UID says that there is no such object.
type found struct {
	uid string
	pod *attest.Pod
	at  time.Time
}

// Live implements [attest.Cluster].
//
// What the view holds and agrees with the token is the answer, and counts as
// current, as long as the view is no older than Limits.Stale: watches end and are
// opened again all the time. A pod that is ahead of the watch is waited
// for, and then looked up; so is one whose node or account seems to be another.
// An older view is replaced by look-ups, and is all there is, with Current
// false, where they cannot be had.
func (c *Cluster) Live(ctx context.Context, b attest.Bound) (attest.Live, error) {
	f := c.view.facts(b)
	if f.live.AsOf.IsZero() {
		return attest.Live{}, attest.Deny(attest.ViewNotSynced, b.Ref().String(), "the first list is not complete")
	}
	stale := c.now().Sub(f.live.AsOf) > c.limits.Stale
	if !stale && !f.agree && !f.deleted && !c.refuted(b) {
		f = c.await(ctx, b)
	}
	if f.deleted { // what has its name now, if anything, is another pod
		return attest.Live{Pod: f.live.Pod, AsOf: f.live.AsOf, Current: !stale}, nil
	}
	if f.agree && !stale {
		f.live.Current = true
		return f.live, nil
	}
	live, err := c.lookup(ctx, b, f.live, stale)
	switch {
	case err == nil:
		return live, nil
	case f.agree && (away(err) || errors.Is(err, memo.ErrBusy)):
		return f.live, nil
	case errors.Is(err, memo.ErrBusy):
		return attest.Live{}, attest.Deny(attest.PodLookupBusy, b.Ref().String(), "%d look-ups are under way", c.limits.Lookups)
	case away(err):
		return attest.Live{}, attest.Deny(attest.APIServerAway, b.Ref().String(), "looking it up: %v", err)
	}
	return attest.Live{}, attest.Deny(attest.InternalError, b.Ref().String(), "looking it up: %v", err)
}

// keysOf names what stands behind a token.
func keysOf(b attest.Bound) (pod, account, node lookupKey) {
	return lookupKey{pods, name{b.Namespace, b.PodName}, b.PodUID},
		lookupKey{accounts, name{b.Namespace, b.ServiceAccount}, b.ServiceAccountUID},
		lookupKey{nodes, name{name: b.NodeName}, b.NodeUID}
}

// refuted tells whether a look-up has just shown that something behind the token
// is gone: then there is nothing to wait for.
func (c *Cluster) refuted(b attest.Bound) bool {
	pod, account, node := keysOf(b)
	for _, key := range []lookupKey{pod, account, node} {
		if answer, ok := c.lookups.Get(key); ok && answer.Negative {
			return true
		}
	}
	return false
}

// await gives the watch a while to catch up with the token.
func (c *Cluster) await(ctx context.Context, b attest.Bound) facts {
	limit := c.limits.FreshWait
	if end, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(end)/2) // the rest is for looking it up
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	pod, account, node := keysOf(b)
	changed, stop := c.view.wait(wanted{pod.kind, pod.name}, wanted{account.kind, account.name}, wanted{node.kind, node.name})
	defer stop()
	for {
		if f := c.view.facts(b); f.agree || f.deleted {
			return f
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return c.view.facts(b)
		}
	}
}

// lookup asks the API server for what the view does not know, or, where the view
// is stale, for all of it.
func (c *Cluster) lookup(ctx context.Context, b attest.Bound, view attest.Live, stale bool) (attest.Live, error) {
	live := attest.Live{ServiceAccountUID: view.ServiceAccountUID, AsOf: view.AsOf, Current: true}
	if stale {
		live.AsOf = c.now()
	}
	podKey, accountKey, _ := keysOf(b)
	pod, err := c.get(ctx, podKey)
	if err != nil {
		return live, err
	}
	live.AsOf = earlier(live.AsOf, pod.at)
	if live.Pod = pod.pod; live.Pod == nil || live.Pod.Ref.UID != b.PodUID {
		return live, nil
	}
	if stale || view.ServiceAccountUID != b.ServiceAccountUID {
		account, err := c.get(ctx, accountKey)
		if err != nil {
			return live, err
		}
		live.ServiceAccountUID, live.AsOf = account.uid, earlier(live.AsOf, account.at)
	}
	if live.Pod.Node == "" {
		return live, nil
	}
	if live.NodeUID = c.view.uid(nodes, name{name: live.Pod.Node}); stale || b.NodeUID != "" && live.NodeUID != b.NodeUID {
		node, err := c.get(ctx, lookupKey{nodes, name{name: live.Pod.Node}, b.NodeUID})
		if err != nil {
			return live, err
		}
		live.NodeUID, live.AsOf = node.uid, earlier(live.AsOf, node.at)
	}
	return live, nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// get looks one object up, in one joined call.
func (c *Cluster) get(ctx context.Context, key lookupKey) (found, error) {
	return c.lookups.Do(ctx, key, func(ctx context.Context) memo.Answer[found] {
		begun := c.now()
		if c.health.allow(begun) == refused {
			return memo.Answer[found]{Err: errAway}
		}
		path := key.kind.path(name{url.PathEscape(key.name.namespace), url.PathEscape(key.name.name)})
		w := c.wireOf(key.kind)()
		err := c.api.call(ctx, http.MethodGet, path, nil, w)
		c.health.report(c.now(), err)
		c.metrics.lookedUp(err)
		answer := memo.Answer[found]{Value: found{at: begun}}
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return memo.Answer[found]{Err: err}
		default:
			o := w.object(c.cfg.ID, c.pool)
			if o.name != key.name || o.uid == "" {
				return memo.Answer[found]{Err: &decodeError{errors.New("it is of another object")}}
			}
			answer.Value.uid, answer.Value.pod = o.uid, o.pod
		}
		answer.Until = begun.Add(foundFor)
		if key.uid != "" && answer.Value.uid != key.uid {
			answer.Negative, answer.Until = true, begun.Add(missingFor)
		}
		return answer
	})
}
