package kube

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/util/workqueue"
)

const (
	retryFirst = 250 * time.Millisecond
	retryLast  = 5 * time.Minute // of one that refuses
	awayFirst  = time.Second
	awayLast   = 15 * time.Second
)

func sumOf(content []byte) checksum { return sha256.Sum256(content) }

// term is the time for which we hold the Lease: the objects that are to be looked
// at, each at most once at a time.
type term struct {
	queue workqueue.TypedRateLimitingInterface[key]
}

// wake has k looked at by whoever writes here.
func (p *Publisher) wake(k key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.term != nil {
		p.term.queue.Add(k)
	}
}

// write works until ctx ends: the Lease is lost, or everything stops.
func (p *Publisher) write(ctx context.Context) {
	t := &term{queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[key](retryFirst, retryLast))}
	p.mu.Lock()
	p.term = t
	p.mu.Unlock()
	for _, k := range p.view.keys() {
		t.queue.Add(k)
	}
	stop := context.AfterFunc(ctx, t.queue.ShutDown)
	defer stop()
	var workers sync.WaitGroup
	for range p.cfg.Limits.Parallel {
		workers.Go(func() {
			for p.next(ctx, t) {
			}
		})
	}
	workers.Wait()
	p.mu.Lock()
	p.term = nil
	p.mu.Unlock()
	p.view.clear()
}

// next works on one object; false: the term is over.
func (p *Publisher) next(ctx context.Context, t *term) bool {
	k, over := t.queue.Get()
	if over || ctx.Err() != nil {
		return false
	}
	defer t.queue.Done(k)
	if left := p.pause.left(p.cfg.Now()); left > 0 {
		t.queue.AddAfter(k, left)
		return true
	}
	task, ok := p.view.task(k)
	if !ok {
		t.queue.Forget(k)
		return true
	}
	what := decide(task.object, task.wanted, p.cfg.TakeOver)
	next := contest{}
	if what.from != "" {
		var wait time.Duration
		p.view.note(k, func(e *entry) {
			if next, wait = e.contest.overrule(what.from, p.cfg.Now()); wait > 0 {
				e.contest = next
			}
		})
		if wait > 0 {
			what = verdict{problem: heldBy(what.from)}
			t.queue.AddAfter(k, wait)
		}
	}
	if what.move == keep {
		p.view.note(k, func(e *entry) { e.problem = what.problem })
		t.queue.Forget(k)
		return true
	}
	if p.limiter.Wait(ctx) != nil {
		return false
	}
	err := p.put(ctx, k, task, what.move)
	if ctx.Err() != nil {
		return false
	}
	p.came(t, k, task, what, next, err)
	return true
}

// put sends one write.
func (p *Publisher) put(ctx context.Context, k key, task task, how move) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	at, err := p.api.at(ctx, k.kind)
	if err != nil {
		return err
	}
	t := p.targets[k.kind]
	var client dynamic.ResourceInterface = p.api.dynamic.Resource(at)
	if k.namespace != "" {
		client = p.api.dynamic.Resource(at).Namespace(k.namespace)
	}
	_, err = client.Apply(ctx, t.name, t.render(at, k.namespace, task.version(), task.wanted), metav1.ApplyOptions{FieldManager: manager, Force: how == force})
	return err
}

// came notes what came of a write. What the object then holds is for the watch to
// say.
func (p *Publisher) came(t *term, k key, task task, what verdict, next contest, err error) {
	name := p.targets[k.kind].reader(k.namespace)
	switch {
	case err == nil:
		p.pause.over()
		t.queue.Forget(k)
		p.view.note(k, func(e *entry) {
			e.problem, e.done = "", done{task.wanted, task.event}
			if what.from != "" {
				e.contest = next
			}
		})
		p.metrics.written(k.kind, "ok")
		if o := task.object; o != nil && o.ours && len(o.writers) > 0 {
			p.metrics.takenBack.WithLabelValues(k.kind.String()).Inc()
			p.cfg.Log.Warn("an object was changed by another hand and is written anew", "object", name, "by", o.writers)
		} else {
			p.cfg.Log.Debug("bundle written", "object", name, "sequence", task.wanted.sequence)
		}
	case away(err):
		p.metrics.written(k.kind, "away")
		p.view.note(k, func(e *entry) { e.problem = "the API server does not answer: " + escape(err) })
		t.queue.AddAfter(k, p.pause.begin(p.cfg.Now()))
	case apierrors.IsConflict(err):
		// Somebody was faster; the watch is about to say who.
		p.pause.over()
		p.metrics.written(k.kind, "conflict")
		t.queue.AddRateLimited(k)
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause), apierrors.IsNotFound(err) && k.kind == configMaps:
		// The namespace goes; the watch is about to say so.
		p.pause.over()
		p.metrics.written(k.kind, "terminating")
		t.queue.AddRateLimited(k)
	default:
		p.pause.over()
		p.metrics.written(k.kind, "refused")
		text := "the API server refuses the write: " + escape(err)
		if errors.Is(err, errNoTrustBundles) {
			text = err.Error()
		}
		p.view.note(k, func(e *entry) { e.problem = text })
		t.queue.AddRateLimited(k)
	}
}

// pause is for how long nobody asks an API server that did not answer.
type pause struct {
	mu    sync.Mutex // guards all below
	until time.Time
	last  time.Duration
}

// left is how long to wait.
func (p *pause) left(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.until.Sub(now)
}

// begin starts a pause, longer than the last; those who failed meanwhile share
// it.
func (p *pause) begin(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if left := p.until.Sub(now); left > 0 {
		return left
	}
	p.last = min(max(awayFirst, 2*p.last), awayLast)
	p.until = now.Add(p.last)
	return p.last
}

// over ends it: there was an answer.
func (p *pause) over() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.until, p.last = time.Time{}, 0
}
