package signing

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing/evidence"
	"github.com/hallmark-ca/hallmark/signing/policy"
)

const (
	maxAnswers = 1 << 14 // that are remembered, without evidence
	maxSpare   = 32      // evidence that the disk would not take
	// awayFor is how long a fault is remembered: long enough that a thousand
	// pods do not knock one by one, short enough that nobody notices.
	awayFor = 2 * time.Second
)

// target is one question to a registry: the evidence of a subject or, where tag
// is set, the digest of an image that is named by tag.
type target struct {
	subject evidence.Subject
	tag     string
}

// answer is what became of a question. Evidence is not in it: it is in the
// store.
type answer struct {
	at     time.Time
	digest string            // of a tag
	deny   *attest.DenyError // why there is none
}

// flight is a question under way.
type flight struct {
	target target
	idle   bool          // nobody waits for it
	done   chan struct{} // closed when the answer is there
}

// fetcher asks registries: each question once at a time whoever waits for it,
// so many at once, so many of one registry, so that one that hangs holds up
// none of the others, and so many in all. A caller that leaves stops nothing.
type fetcher struct {
	cfg     *Config
	log     *slog.Logger
	metrics *metrics
	// changed is told of a subject whose evidence is another one now, before the
	// flight is done.
	changed func(evidence.Subject)
	// useful tells whether a signature satisfies somebody.
	useful func(evidence.Signature, evidence.Subject) bool

	queue chan *flight // has room for all that may be running
	slots chan struct{}
	idle  chan struct{} // slots for what nobody waits for

	mu      sync.Mutex // guards running, hosts, and the pair of running and answers
	running map[target]*flight
	hosts   map[string]*host
	answers *lru.Cache[target, answer]
	spare   *lru.Cache[evidence.Subject, *evidence.Evidence]
}

// host is one registry, for as long as somebody asks it.
type host struct {
	slots chan struct{}
	users int
}

func newFetcher(cfg *Config) (*fetcher, error) {
	answers, err := lru.New[target, answer](maxAnswers)
	if err != nil {
		return nil, err
	}
	spare, err := lru.New[evidence.Subject, *evidence.Evidence](maxSpare)
	if err != nil {
		return nil, err
	}
	return &fetcher{
		cfg: cfg, log: cfg.Log, answers: answers, spare: spare, running: map[target]*flight{}, hosts: map[string]*host{},
		queue: make(chan *flight, cfg.Queue), slots: make(chan struct{}, cfg.Parallel), idle: make(chan struct{}, max(1, cfg.Parallel/4)),
	}, nil
}

// held returns the evidence that is at hand.
func (f *fetcher) held(s evidence.Subject) *evidence.Evidence {
	if e, ok := f.spare.Get(s); ok {
		return e
	}
	if e, ok := f.cfg.Store.Get(s); ok {
		return e
	}
	return nil
}

// ask returns the answer to t if there is one for which fresh holds, else the
// flight that will have one. It never waits.
func (f *fetcher) ask(t target, idle bool, fresh func(answer) bool) (answer, *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.running[t]; fl != nil {
		return answer{}, fl
	}
	if a, ok := f.answers.Get(t); ok && fresh(a) {
		return a, nil
	}
	if len(f.running) >= f.cfg.Queue {
		return answer{at: f.cfg.Now(), deny: attest.Deny(attest.Overloaded, "", "%d questions to registries are under way", len(f.running))}, nil
	}
	fl := &flight{target: t, idle: idle, done: make(chan struct{})}
	f.running[t] = fl
	f.queue <- fl
	return answer{}, fl
}

// last returns the last answer to t.
func (f *fetcher) last(t target) (answer, bool) { return f.answers.Peek(t) }

// proof returns the evidence of s, or why there is none, or the flight that
// will have it.
func (f *fetcher) proof(s evidence.Subject) (Proof, *flight) {
	if e := f.held(s); e != nil {
		return Proof{Evidence: e}, nil
	}
	// An answer without a fault says that the evidence was there and is not any
	// more: it is asked for again.
	a, fl := f.ask(target{subject: s}, false, func(a answer) bool { return a.deny != nil && f.young(a) })
	if fl != nil {
		return Proof{}, fl
	}
	return Proof{Absent: a.deny.Reason, Detail: a.deny.Detail}, nil
}

// resolve returns the digest of an image that is named by tag, or why there is
// none, or the flight that will have it.
func (f *fetcher) resolve(image string) (string, Proof, *flight) {
	a, fl := f.ask(target{tag: image}, false, f.young)
	switch {
	case fl != nil:
		return "", Proof{}, fl
	case a.deny != nil:
		return "", Proof{Absent: a.deny.Reason, Detail: a.deny.Detail}, nil
	}
	return a.digest, Proof{}, nil
}

// refresh has s asked for again, if it was not within RetryAfter. It returns
// nil if nothing is to be waited for.
func (f *fetcher) refresh(s evidence.Subject, idle bool) *flight {
	_, fl := f.ask(target{subject: s}, idle, func(a answer) bool { return f.cfg.Now().Sub(a.at) < f.cfg.RetryAfter })
	return fl
}

// young tells whether an answer still counts. A fault does for a moment only.
func (f *fetcher) young(a answer) bool {
	limit := f.cfg.RetryAfter
	if a.deny != nil && a.deny.Reason.Kind() != attest.KindForbidden {
		limit = min(limit, awayFor)
	}
	return f.cfg.Now().Sub(a.at) < limit
}

// run asks what is in the queue until ctx ends.
func (f *fetcher) run(ctx context.Context) error {
	var flights sync.WaitGroup
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case fl := <-f.queue:
			flights.Go(func() { f.land(fl, f.board(ctx, fl)) })
		}
	}
	flights.Wait()
	for {
		select {
		case fl := <-f.queue:
			f.land(fl, stopped())
		default:
			return nil
		}
	}
}

func stopped() answer { return answer{deny: attest.Deny(attest.ShuttingDown, "", "")} }

// board waits for its turn: among what nobody waits for, at its registry, and
// among all.
func (f *fetcher) board(ctx context.Context, fl *flight) answer {
	h, leave := f.enter(fl.target)
	defer leave()
	turns := []chan struct{}{h.slots, f.slots}
	if fl.idle {
		turns = append([]chan struct{}{f.idle}, turns...)
	}
	for _, turn := range turns {
		select {
		case turn <- struct{}{}:
			defer func() { <-turn }()
		case <-ctx.Done():
			return stopped()
		}
	}
	return f.fly(ctx, fl.target)
}

// enter returns the registry that t asks, until leave is called.
func (f *fetcher) enter(t target) (h *host, leave func()) {
	name, _, _ := strings.Cut(t.subject.Repository, "/")
	if t.tag != "" {
		if image, err := policy.ParseImage(t.tag); err == nil {
			name, _, _ = strings.Cut(image.Repository(), "/")
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if h = f.hosts[name]; h == nil {
		h = &host{slots: make(chan struct{}, max(1, f.cfg.Parallel/2))}
		f.hosts[name] = h
	}
	h.users++
	return h, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if h.users--; h.users == 0 {
			delete(f.hosts, name)
		}
	}
}

// land makes the answer known, and then lets go whoever waits for it.
func (f *fetcher) land(fl *flight, a answer) {
	a.at = f.cfg.Now()
	f.mu.Lock()
	f.answers.Add(fl.target, a)
	delete(f.running, fl.target)
	f.mu.Unlock()
	close(fl.done)
}

func (f *fetcher) fly(ctx context.Context, t target) answer {
	ctx, cancel := context.WithTimeout(ctx, f.cfg.FetchTimeout)
	defer cancel()
	start, question := time.Now(), "collect"
	var (
		digest string
		err    error
	)
	if t.tag != "" {
		question = "resolve"
		digest, err = f.resolveTag(ctx, t.tag)
	} else {
		err = f.collect(ctx, t.subject)
	}
	result := "ok"
	a := answer{digest: digest}
	if err != nil {
		a.deny = fault(ctx, err)
		result = a.deny.Reason.String()
		level := slog.LevelWarn
		if last, ok := f.last(t); ok && last.deny != nil && last.deny.Reason == a.deny.Reason {
			level = slog.LevelDebug // said before
		}
		f.log.Log(ctx, level, "asking a registry failed", "question", question, "image", attest.Escape(t.tag+t.subject.Digest), "repository", t.subject.Repository, "reason", result, "detail", a.deny.Detail)
	}
	f.metrics.fetches.WithLabelValues(question, result).Observe(time.Since(start).Seconds())
	return a
}

// fault turns an error of a collector into a refusal. Only what a registry
// itself can say is a verdict; all else is Unavailable.
func fault(ctx context.Context, err error) *attest.DenyError {
	var d *attest.DenyError
	switch {
	case !errors.As(err, &d) && ctx.Err() != nil:
		return attest.Deny(attest.RegistryAway, "", "%v", err)
	case d == nil:
		return attest.DenialOf(err)
	case d.Reason == attest.ImageNotFound || d.Reason == attest.ImageReferenceInvalid || d.Reason.Kind() == attest.KindUnavailable:
		return d
	}
	return attest.Deny(attest.InternalError, "", "a registry cannot say: %v", err)
}

func (f *fetcher) resolveTag(ctx context.Context, image string) (string, error) {
	s, err := f.cfg.Collector.Resolve(ctx, image)
	if err != nil {
		return "", err
	}
	if !evidence.ValidDigest(s.Digest) {
		return "", attest.Deny(attest.InternalError, "", "the tag resolved to %q", attest.Escape(s.Digest))
	}
	return s.Digest, nil
}

// collect fetches the evidence of s and keeps it together with what was there.
func (f *fetcher) collect(ctx context.Context, s evidence.Subject) error {
	found, err := f.cfg.Collector.Collect(ctx, s)
	if err != nil {
		return err
	}
	if found == nil || found.Subject != s {
		return attest.Deny(attest.InternalError, "", "evidence of another image was collected for %s", s)
	}
	if err := found.Check(); err != nil {
		return attest.Deny(attest.InternalError, "", "%v", err)
	}
	old := f.held(s)
	merged := merge(old, found, func(sig evidence.Signature) bool { return f.useful(sig, s) })
	if err := f.cfg.Store.Put(merged); err != nil {
		// The pod that asks shall have its answer; it is only asked again after a
		// restart.
		f.log.Error("evidence could not be kept on disk", "image", s.String(), "error", err)
		f.spare.Add(s, merged)
	} else {
		f.spare.Remove(s)
	}
	if old != nil && !sameSignatures(old, merged) {
		f.changed(s)
	}
	return nil
}

// underWay returns how many questions are not answered yet.
func (f *fetcher) underWay() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.running)
}
