package signing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
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
	who    string        // the namespace that asked first, or nobody
	own    chan struct{} // its slots
	common bool          // others ask, too: it counts against nobody; the fetcher's lock guards it
	shared chan struct{} // closed with it
	done   chan struct{} // closed when the answer is there
}

// nobody waits for what it asks.
const nobody = ""

// fetcher asks registries: each question once at a time whoever waits for it,
// so many at once, and so many in all. Each registry has a share of that, so
// that one that hangs holds up none of the others; and so has each namespace,
// because whoever writes pods chooses how many images, and which registries. A
// caller that leaves stops nothing.
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

	mu      sync.Mutex // guards running and the shares, and the pair of running and answers
	running map[target]*flight
	hosts   shares
	tenants shares
	pairs   shares // of one namespace at one registry
	answers *lru.Cache[target, answer]
	spare   *lru.Cache[evidence.Subject, *evidence.Evidence]
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
		cfg: cfg, log: cfg.Log, answers: answers, spare: spare, running: map[target]*flight{},
		hosts: newShares(cfg.Parallel / 2), tenants: newShares(cfg.Parallel * 3 / 4), pairs: newShares(cfg.Parallel / 2),
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

// tenantPart is what one namespace may have of the queue, as a divisor.
const tenantPart = 8

// ask returns the answer to t if there is one for which fresh holds, else the
// flight that will have one. It never waits.
func (f *fetcher) ask(t target, who string, fresh func(answer) bool) (answer, *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.running[t]; fl != nil {
		fl.join(who)
		return answer{}, fl
	}
	if a, ok := f.answers.Get(t); ok && fresh(a) {
		return a, nil
	}
	switch own := f.tenants.users(who); {
	case len(f.running) >= f.cfg.Queue:
		return answer{at: f.cfg.Now(), deny: attest.Deny(attest.Overloaded, "", "%d questions to registries are under way", len(f.running))}, nil
	case who != nobody && own >= max(1, f.cfg.Queue/tenantPart):
		return answer{at: f.cfg.Now(), deny: attest.Deny(attest.Overloaded, "", "%d questions to registries are under way for pods of %s", own, who)}, nil
	}
	fl := &flight{target: t, who: who, own: f.idle, shared: make(chan struct{}), done: make(chan struct{})}
	if who != nobody {
		fl.own = f.tenants.enter(who)
	}
	f.running[t] = fl
	f.queue <- fl
	return answer{}, fl
}

// join notes that who asks the same. Then it waits neither for the share of a
// namespace, which another could have used up on purpose, nor behind what
// nobody waits for. The fetcher's lock is held.
func (fl *flight) join(who string) {
	if who != nobody && who != fl.who && !fl.common {
		fl.common = true
		close(fl.shared)
	}
}

// last returns the last answer to t.
func (f *fetcher) last(t target) (answer, bool) { return f.answers.Peek(t) }

// proof returns the evidence of s, or why there is none, or the flight that
// will have it.
func (f *fetcher) proof(s evidence.Subject, who string) (Proof, *flight) {
	if e := f.held(s); e != nil {
		return Proof{Evidence: e}, nil
	}
	// An answer without a fault says that the evidence was there and is not any
	// more: it is asked for again.
	a, fl := f.ask(target{subject: s}, who, func(a answer) bool { return a.deny != nil && f.young(a) })
	if fl != nil {
		return Proof{}, fl
	}
	return Proof{Absent: a.deny.Reason, Detail: a.deny.Detail}, nil
}

// resolve returns the digest of an image that is named by tag, or why there is
// none, or the flight that will have it.
func (f *fetcher) resolve(image, who string) (string, Proof, *flight) {
	a, fl := f.ask(target{tag: image}, who, f.young)
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
func (f *fetcher) refresh(s evidence.Subject, who string) *flight {
	_, fl := f.ask(target{subject: s}, who, func(a answer) bool { return f.cfg.Now().Sub(a.at) < f.cfg.RetryAfter })
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

// board waits for its turn: among those of its namespace, or those that nobody
// waits for, at its registry, and among all.
func (f *fetcher) board(ctx context.Context, fl *flight) answer {
	turns, leave := f.turns(fl)
	defer leave()
	for _, t := range turns {
		var unless <-chan struct{}
		if t.own {
			unless = fl.shared
		}
		select {
		case t.slots <- struct{}{}:
			defer func() { <-t.slots }()
		case <-unless:
		case <-ctx.Done():
			return stopped()
		}
	}
	return f.fly(ctx, fl.target)
}

// turn is one of the slots that a flight needs.
type turn struct {
	slots chan struct{}
	own   bool // not where others ask the same
}

// turns returns what fl needs, in this order: what waits for its registry holds
// no more of its namespace's share than a registry may have of it, and what
// waits for that share holds nothing that others could use.
func (f *fetcher) turns(fl *flight) (turns []turn, leave func()) {
	host := hostOf(fl.target)
	f.mu.Lock()
	defer f.mu.Unlock()
	pair := fl.who + "\n" + host
	return []turn{{f.pairs.enter(pair), true}, {fl.own, true}, {f.hosts.enter(host), false}, {f.slots, false}}, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.hosts.leave(host)
		f.pairs.leave(pair)
	}
}

// hostOf returns the registry that t asks.
func hostOf(t target) string {
	repository := t.subject.Repository
	if t.tag != "" {
		if image, err := policy.ParseImage(t.tag); err == nil {
			repository = image.Repository()
		}
	}
	host, _, _ := strings.Cut(repository, "/")
	return host
}

// land makes the answer known, and then lets go whoever waits for it.
func (f *fetcher) land(fl *flight, a answer) {
	a.at = f.cfg.Now()
	f.mu.Lock()
	f.answers.Add(fl.target, a)
	delete(f.running, fl.target)
	if fl.who != nobody {
		f.tenants.leave(fl.who)
	}
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
		err = guarded(func() (err error) { digest, err = f.resolveTag(ctx, t.tag); return err })
	} else {
		err = guarded(func() error { return f.collect(ctx, t.subject) })
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

// guarded turns a panic over what a registry sent into an error: the process,
// with the keys that it holds in memory, lives on.
func guarded(ask func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("asking a registry: panic: %v\n%s", p, debug.Stack())
		}
	}()
	return ask()
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
