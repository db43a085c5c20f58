package kube

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
)

const (
	leaseCall    = 3 * time.Second
	leaseLongest = 5 * time.Minute // for which another's Lease is believed
)

// lease is one Lease that replicas hold in turn. A holder is dead when its Lease
// has not changed for its whole duration by the clock of who looks, so that the
// clocks of replicas need not agree.
//
// It is used by one goroutine, but for held.
type lease struct {
	client   dynamic.ResourceInterface
	name     string
	holder   string
	duration time.Duration
	now      func() time.Time
	log      *slog.Logger

	held    atomic.Bool
	version string    // of the Lease as it was seen last
	seen    time.Time // when it was first seen in that version
	trouble string    // the last error that was logged
}

// standing is what is known of the Lease.
type standing uint8

const (
	unknown standing = iota
	ours
	others
)

// hold runs work whenever the Lease is held, until ctx ends. work MUST return
// soon once its context ends.
func (l *lease) hold(ctx context.Context, work func(context.Context)) {
	retry := l.duration / 6
	for ctx.Err() == nil {
		if asked := l.now(); l.try(ctx) == ours {
			l.log.Info("this replica writes the bundle's objects", "lease", l.name)
			l.held.Store(true)
			l.during(ctx, asked, retry, work)
			l.held.Store(false)
			l.log.Info("this replica does not write the bundle's objects any more", "lease", l.name)
		}
		// Apart, so that those who wait do not all come at once.
		waitFor(ctx, retry/2+rand.N(retry))
	}
}

// during works, and renews until another has the Lease, or two thirds of its
// duration are over: the next one may take it a third later.
func (l *lease) during(ctx context.Context, renewed time.Time, retry time.Duration, work func(context.Context)) {
	term, end := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		work(term)
	}()
	for waitFor(ctx, retry) {
		asked := l.now()
		standing := l.try(ctx)
		if standing == ours {
			renewed = asked
			continue
		}
		if standing == others || l.now().Sub(renewed) > l.duration*2/3 {
			break
		}
	}
	end()
	<-done
	if ctx.Err() != nil {
		l.release(context.WithoutCancel(ctx))
	}
}

// try takes or renews the Lease, where that is possible.
func (l *lease) try(ctx context.Context) standing {
	ctx, cancel := context.WithTimeout(ctx, leaseCall)
	defer cancel()
	got, err := l.attempt(ctx)
	text := ""
	if err != nil {
		text = escape(err)
	}
	if text != l.trouble && text != "" {
		l.log.Warn("the Lease of the bundle's objects cannot be taken or renewed", "lease", l.name, "error", text)
	}
	l.trouble = text
	return got
}

func (l *lease) attempt(ctx context.Context) (standing, error) {
	there, err := l.client.Get(ctx, l.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return l.write(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: l.name}})
	}
	if err != nil {
		return unknown, fmt.Errorf("reading: %w", err)
	}
	var current coordinationv1.Lease
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(there.Object, &current); err != nil {
		return unknown, fmt.Errorf("reading: %w", err)
	}
	now := l.now()
	if current.ResourceVersion != l.version {
		l.version, l.seen = current.ResourceVersion, now
	}
	if by := current.Spec.HolderIdentity; by != nil && *by != "" && *by != l.holder && now.Sub(l.seen) < l.believed(&current) {
		return others, nil
	}
	return l.write(ctx, &current)
}

// believed is for how long a Lease that does not change is held all the same.
func (l *lease) believed(current *coordinationv1.Lease) time.Duration {
	if s := current.Spec.LeaseDurationSeconds; s != nil && *s > 0 {
		return min(time.Duration(*s)*time.Second, leaseLongest)
	}
	return l.duration
}

// write makes the Lease ours, unless it has changed since it was read.
func (l *lease) write(ctx context.Context, current *coordinationv1.Lease) (standing, error) {
	now := metav1.NewMicroTime(l.now())
	spec := &current.Spec
	if spec.HolderIdentity == nil || *spec.HolderIdentity != l.holder {
		var turns int32
		if spec.LeaseTransitions != nil && current.ResourceVersion != "" {
			turns = *spec.LeaseTransitions + 1
		}
		spec.AcquireTime, spec.LeaseTransitions = &now, &turns
	}
	seconds := int32(l.duration / time.Second)
	spec.HolderIdentity, spec.LeaseDurationSeconds, spec.RenewTime = &l.holder, &seconds, &now
	written, err := l.send(ctx, current)
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		return others, nil // who was faster is read next time
	}
	if err != nil {
		return unknown, fmt.Errorf("writing: %w", err)
	}
	l.version, l.seen = written.GetResourceVersion(), l.now()
	return ours, nil
}

func (l *lease) send(ctx context.Context, current *coordinationv1.Lease) (*unstructured.Unstructured, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(current)
	if err != nil {
		return nil, err
	}
	u := &unstructured.Unstructured{Object: content}
	u.SetAPIVersion(leasesAt.GroupVersion().String())
	u.SetKind("Lease")
	if current.ResourceVersion == "" {
		return l.client.Create(ctx, u, metav1.CreateOptions{FieldManager: manager})
	}
	return l.client.Update(ctx, u, metav1.UpdateOptions{FieldManager: manager})
}

// release lets the next one write at once. Where it fails the Lease runs out.
func (l *lease) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, leaseCall)
	defer cancel()
	there, err := l.client.Get(ctx, l.name, metav1.GetOptions{})
	var current coordinationv1.Lease
	if err == nil {
		err = runtime.DefaultUnstructuredConverter.FromUnstructured(there.Object, &current)
	}
	if err == nil && current.Spec.HolderIdentity != nil && *current.Spec.HolderIdentity == l.holder {
		none := ""
		current.Spec.HolderIdentity = &none
		_, err = l.send(ctx, &current)
	}
	if err != nil {
		l.log.Info("the Lease of the bundle's objects was not given back and runs out by itself", "lease", l.name, "error", escape(err))
	}
}

// waitFor returns false when ctx ends first.
func waitFor(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
