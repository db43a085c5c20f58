package rotate_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-ca/hallmark/ca/census"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/rotate"
)

const who = "ada"

var forced = rotate.Force{Pass: true, Reason: "the mesh is being moved"}

// looks has r look n times, as Run does.
func looks(t *testing.T, r *rotate.Runner, n int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := r.Run(ctx); err != nil {
			t.Errorf("Run = %v", err)
		}
	}()
	synctest.Wait()
	if n > 1 {
		<-time.After(time.Duration(n-1)*interval + time.Second)
	}
	cancel()
	<-done
}

func want(t *testing.T, w *world, phases ...journal.Phase) {
	t.Helper()
	if diff := cmp.Diff(phases, w.phases()); diff != "" {
		t.Errorf("phases of the roots (-want +got):\n%s", diff)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused wants a refusal that says why and names the mend.
func refused(t *testing.T, err error, why, mend string) {
	t.Helper()
	var r *rotate.RefusedError
	if !errors.As(err, &r) || !strings.Contains(r.Why, why) || !strings.Contains(r.Mend, mend) {
		t.Errorf("error is %v (%T), want a refusal that says %q and %q", err, err, why, mend)
	}
}

// inBubble runs f in a bubble with a world and a Runner.
func inBubble(t *testing.T, f func(t *testing.T, w *world, r *rotate.Runner)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f(t, w, w.start(t))
		w.prove(t)
	})
}

// A whole life, by steps of a person.
func TestLifeByHand(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		ctx := t.Context()
		must(t, r.Start(ctx, who))
		want(t, w, journal.Active, journal.Published)
		if w.sequence != 2 || len(w.bundle) != 2 || w.issuing != w.root(0).ID {
			t.Errorf("given out: sequence %d, %d roots, signing under %s", w.sequence, len(w.bundle), w.issuing)
		}
		must(t, r.Activate(ctx, who, rotate.Force{}))
		want(t, w, journal.Draining, journal.Active)
		if w.issuing != w.root(1).ID || w.serving != w.root(0).ID {
			t.Error("after the activation it does not sign under the new root and serve under the old one")
		}
		// A rehearsal that everybody passes at once, and the end, in one command.
		must(t, r.Retire(ctx, who, "", rotate.Force{}))
		want(t, w, journal.Retired, journal.Active)
		if w.serving != w.root(1).ID || len(w.bundle) != 1 {
			t.Error("after the retirement it does not serve under the new root, or trusts the old one")
		}
		<-time.After(keyHold)
		looks(t, r, 2)
		if count(w, "revert") > 0 {
			t.Error("a rehearsal that has passed was taken back")
		}
		if root := w.root(0); root.Destroyed == nil || w.keys[root.ID] != nil {
			t.Error("the key is there after its hold")
		}
		for _, rec := range w.records[1:5] {
			if !strings.Contains(string(rec.Body), `"by":"ada"`) {
				t.Errorf("the journal does not say who asked: %s", rec.Body)
			}
		}
	})
}

// A whole life by itself, over restarts of the process.
func TestLifeByItself(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		w.summary = func(q census.Question) census.Summary {
			return census.Summary{Consumers: 2, Confirmed: 1, BehindCount: 1, Behind: []census.Consumer{consumer(t, "cart")}}
		}
		must(t, r.RunAll(t.Context(), who))
		looks(t, r, 3)
		want(t, w, journal.Active, journal.Published)
		if w.state.Course != journal.Run {
			t.Errorf("the course is %q", w.state.Course)
		}
		w.summary = func(census.Question) census.Summary { return census.Summary{Consumers: 2, Confirmed: 2} }
		r = w.start(t) // nothing is lost: the course is journalled
		looks(t, r, 3)
		want(t, w, journal.Retired, journal.Active)
		if w.state.Course != journal.Manual {
			t.Errorf("the course is %q after the end", w.state.Course)
		}
	})
}

// automatic: run prepares at half of the root's life, and goes on.
func TestLifeByPolicy(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, _ *rotate.Runner) {
		w.policy.Automatic = rotate.RunAlone
		r := w.start(t)
		<-time.After(rootLifetime/2 - 2*time.Hour)
		looks(t, r, 2)
		want(t, w, journal.Active)
		<-time.After(2 * time.Hour)
		looks(t, r, 3)
		want(t, w, journal.Retired, journal.Active)
		if last := w.records[len(w.records)-1]; !strings.Contains(string(last.Body), `"by":"rotation"`) {
			t.Errorf("the journal does not say that nobody asked: %s", last.Body)
		}
	})
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	behind := func(census.Question) census.Summary {
		return census.Summary{Consumers: 212, Confirmed: 209, BehindCount: 3, Behind: []census.Consumer{}}
	}
	for _, tt := range []struct {
		name      string
		before    func(ctx context.Context, w *world, r *rotate.Runner) error
		do        func(ctx context.Context, w *world, r *rotate.Runner) error
		why, mend string
	}{
		{"nobody asks", nil, func(ctx context.Context, _ *world, r *rotate.Runner) error { return r.Start(ctx, "") }, "who asks", ""},
		{"a name that is ours", nil, func(ctx context.Context, _ *world, r *rotate.Runner) error { return r.Start(ctx, "rotation") }, "who asks", ""},
		{"a long name", nil, func(ctx context.Context, _ *world, r *rotate.Runner) error {
			return r.Start(ctx, strings.Repeat("a", 257))
		}, "256 bytes", ""},
		{"start twice", start, start, "is on its way already", "activate, or abort"},
		{"activate nothing", nil, activate, "no root is published", "hallmark rotate start"},
		{"activate while gate A is shut", func(ctx context.Context, w *world, r *rotate.Runner) error {
			w.summary = behind
			return r.Start(ctx, who)
		}, activate, "gate A is shut: 3 of 212 consumers have not confirmed root", "wait, or --force --reason"},
		{"force without a reason", start, func(ctx context.Context, _ *world, r *rotate.Runner) error {
			return r.Activate(ctx, who, rotate.Force{Pass: true})
		}, "without a reason", "--reason"},
		{"a long reason", start, func(ctx context.Context, _ *world, r *rotate.Runner) error {
			return r.Retire(ctx, who, "", rotate.Force{Pass: true, Reason: strings.Repeat("a", 513)})
		}, "at most 512", "shorter"},
		{"retire nothing", nil, retire, "no root is draining", ""},
		{"retire what nobody knows", nil, func(ctx context.Context, _ *world, r *rotate.Runner) error {
			return r.Retire(ctx, who, "\x1b[31m", rotate.Force{})
		}, `root \x1b[31m is not known`, "hallmark rotate status"},
		{"retire the active root", nil, func(ctx context.Context, w *world, r *rotate.Runner) error {
			return r.Retire(ctx, who, w.root(0).ID, forced)
		}, "is active, and only", ""},
		{"abort nothing", nil, func(ctx context.Context, _ *world, r *rotate.Runner) error { return r.Abort(ctx, who) }, "no root is on its way", ""},
		{"resume what is not paused", nil, func(ctx context.Context, _ *world, r *rotate.Runner) error { return r.Resume(ctx, who) }, "not paused", ""},
		{"start in a pause", hold, start, "paused", "hallmark rotate resume"},
		{"trust in a pause", hold, func(ctx context.Context, _ *world, r *rotate.Runner) error {
			return r.Trust(ctx, who, foreignRoot(t, "a", nil))
		}, "paused", "resume"},
		{"force in a pause", func(ctx context.Context, w *world, r *rotate.Runner) error {
			return errors.Join(r.Start(ctx, who), r.Pause(ctx, who))
		}, func(ctx context.Context, _ *world, r *rotate.Runner) error { return r.Activate(ctx, who, forced) }, "paused", "resume"},
		{"retire what is only trusted", trust, func(ctx context.Context, w *world, r *rotate.Runner) error {
			return r.Retire(ctx, who, w.root(1).ID, forced)
		}, "only trusted", "hallmark rotate untrust"},
		{"untrust without a reason", trust, func(ctx context.Context, w *world, r *rotate.Runner) error {
			return r.Untrust(ctx, who, w.root(1).ID, rotate.Force{})
		}, "is not known here", "--force --reason"},
		{"untrust what is ours", nil, func(ctx context.Context, w *world, r *rotate.Runner) error {
			return r.Untrust(ctx, who, w.root(0).ID, forced)
		}, "is active, and not only trusted", ""},
		{"untrust what nobody knows", nil, func(ctx context.Context, w *world, r *rotate.Runner) error {
			return r.Untrust(ctx, who, "ffff", forced)
		}, "not known", "status"},
		{"retire while leaves are left", activated, func(ctx context.Context, w *world, r *rotate.Runner) error {
			w.summary = func(census.Question) census.Summary {
				return census.Summary{Leaves: map[string]census.Leaves{w.state.Roots[0].ID: {Count: 41, Until: w.now().Add(time.Hour)}}}
			}
			return r.Retire(ctx, who, "", rotate.Force{})
		}, "41 leaves under root", "wait, or --force"},
		{"retire a younger root first", func(ctx context.Context, w *world, r *rotate.Runner) error {
			return errors.Join(activated(ctx, w, r), activated(ctx, w, r))
		}, func(ctx context.Context, w *world, r *rotate.Runner) error {
			return r.Retire(ctx, who, w.root(1).ID, rotate.Force{})
		}, "is older", "retire the older one first"},
		{"a clock that has jumped", start, func(ctx context.Context, w *world, r *rotate.Runner) error {
			w.jump(time.Hour)
			return r.Activate(ctx, who, forced)
		}, "ClockSkew", "clock"},
		{"a clock behind the journal", start, func(ctx context.Context, w *world, r *rotate.Runner) error {
			w.jump(-time.Hour)
			return r.Activate(ctx, who, forced)
		}, "the clock is 1h0m0s behind the journal", "set this machine's clock"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
				if tt.before != nil {
					must(t, tt.before(t.Context(), w, r))
				}
				records := len(w.records)
				refused(t, tt.do(t.Context(), w, r), tt.why, tt.mend)
				if len(w.records) != records {
					t.Error("the journal was written to all the same")
				}
				if s, err := r.Status(t.Context()); err != nil || s.Failure != nil {
					t.Errorf("a refusal counts as a failure: %+v, %v", s.Failure, err)
				}
			})
		})
	}
}

func start(ctx context.Context, _ *world, r *rotate.Runner) error { return r.Start(ctx, who) }
func hold(ctx context.Context, _ *world, r *rotate.Runner) error  { return r.Pause(ctx, who) }
func activate(ctx context.Context, _ *world, r *rotate.Runner) error {
	return r.Activate(ctx, who, rotate.Force{})
}

func retire(ctx context.Context, _ *world, r *rotate.Runner) error {
	return r.Retire(ctx, who, "", rotate.Force{})
}

func activated(ctx context.Context, w *world, r *rotate.Runner) error {
	return errors.Join(start(ctx, w, r), activate(ctx, w, r))
}

func (w *world) jump(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.offset += d
}

// Whoever passes a gate is journalled with why, and with who was behind.
func TestForceIsJournalled(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		var many []census.Consumer
		for range journal.MaxBehind {
			many = append(many, consumer(t, "cart"))
		}
		w.summary = func(q census.Question) census.Summary {
			if q.Names > journal.MaxBehind {
				t.Errorf("%d names were asked for", q.Names)
			}
			return census.Summary{
				Consumers: 300, BehindCount: 150, Behind: many, AsideCount: 150, Aside: many, UnseenCount: 120, Unseen: many,
				Leaves: map[string]census.Leaves{w.state.Roots[0].ID: {Count: 41, Until: w.now().Add(time.Hour)}},
			}
		}
		must(t, r.Start(t.Context(), who))
		must(t, r.Activate(t.Context(), who, forced))
		must(t, r.Retire(t.Context(), who, "", rotate.Force{Pass: true, Reason: "line\nbreak"}))
		want(t, w, journal.Retired, journal.Active)
		for i, says := range []string{
			`"reason":"the mesh is being moved","count":300,"behind":["shop/cart (uid-cart) at sds, node node-1"`,
			`"reason":"line\\nbreak","count":41`,
		} {
			if body := string(w.records[3+i].Body); !strings.Contains(body, says) {
				t.Errorf("the journal does not say %s: %s", says, body)
			}
		}
	})
}

// An open gate is not passed, and so nobody was behind.
func TestForceAtAnOpenGate(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		must(t, r.Start(t.Context(), who))
		must(t, r.Activate(t.Context(), who, forced))
		if body := string(w.records[3].Body); strings.Contains(body, "passed") {
			t.Errorf("the journal says that a gate was passed: %s", body)
		}
	})
}

// What was pulled back stays back, and its name and key are never used again.
func TestAbort(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, w *world, r *rotate.Runner) {
		must(t, r.Start(t.Context(), who))
		must(t, r.Pause(t.Context(), who))
		w.jump(-time.Hour) // neither a pause nor a clock is in its way
		must(t, r.Abort(t.Context(), who))
		w.jump(time.Hour)
		want(t, w, journal.Active, journal.Aborted)
		if len(w.bundle) != 1 || w.sequence != 3 {
			t.Errorf("given out: %d roots at sequence %d", len(w.bundle), w.sequence)
		}
		must(t, r.Resume(t.Context(), who))
		<-time.After(settle)
		must(t, r.Start(t.Context(), who))
		want(t, w, journal.Active, journal.Aborted, journal.Published)
		if w.root(1).ID == w.root(2).ID {
			t.Error("the key was used again")
		}
	})
}

func count(w *world, call string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return count2(w.calls, call)
}

func count2(calls []string, call string) int {
	return len(slices.DeleteFunc(slices.Clone(calls), func(c string) bool { return c != call }))
}

func gateOf(t *testing.T, r *rotate.Runner, name string) rotate.Gate {
	t.Helper()
	s, err := r.Status(t.Context())
	must(t, err)
	i := slices.IndexFunc(s.Gates, func(g rotate.Gate) bool { return g.Name == name })
	if i < 0 {
		t.Fatalf("there is no gate %s in %+v", name, s.Gates)
	}
	return s.Gates[i]
}

// foreignRoot makes a self-signed root of another authority.
func foreignRoot(t testing.TB, name string, change func(*x509.Certificate)) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{Organization: []string{"cluster.local"}, CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour), KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func trust(ctx context.Context, w *world, r *rotate.Runner) error {
	return r.Trust(ctx, who, foreignRoot(w.tb, "another mesh", nil))
}
