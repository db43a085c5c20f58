package sds

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/maphash"
	mathrand "math/rand/v2"
	"slices"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
)

// maxNames bounds the names of a stream.
const maxNames = 100

// endJitter is the largest part of a credential's remaining life by which its
// stream ends early, as a divisor: 10 %.
const endJitter = 10

// stream is one stream's state. Its goroutine alone touches it.
type stream struct {
	cfg     *Config
	metrics *metrics
	holder  Holder
	send    func(any) error
	drain   <-chan struct{} // nil once the stream knows

	node    node
	subs    []*subscription     // of known names: a handful
	unknown map[uint64]struct{} // hashes of names that stand for nothing

	asked   bool            // the first request has come
	nonce   string          // of the last response sent; "" before
	carried []*subscription // what the response that waits for its answer carries

	opened     time.Time
	ends       time.Time // with the credential; zero is never
	drains     time.Time // zero while the server is not stopping
	dirtySince time.Time // since when something waits behind carried
}

// subscription is one known name on one stream.
type subscription struct {
	name  string
	topic topic
	// active is false after an unsubscription. The rest is kept, so that refused
	// bytes are not sent again to a client that subscribes anew.
	active  bool
	sent    string    // version last sent; "" if none since the subscription
	refused string    // version that the client refused last, until another was sent
	since   time.Time // since when there has been nothing to send at all
}

// secret is what a subscription stands for at the moment.
type secret struct {
	resource [][]byte // on the wire, in pieces
	version  string
}

func newStream(s *Server, holder Holder, send func(any) error) *stream {
	st := &stream{cfg: &s.cfg, metrics: s.metrics, holder: holder, send: send, drain: s.drain, opened: s.cfg.Now()}
	if ends := holder.Expires(); !ends.IsZero() {
		st.ends = ends.Add(-upTo(ends.Sub(st.opened) / endJitter))
	}
	return st
}

// upTo returns a random part of d.
func upTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return mathrand.N(d)
}

// run does everything that happens to the stream, one thing after the other,
// until its end.
func (st *stream) run(ctx context.Context, requests <-chan received) error {
	timer := time.NewTimer(st.cfg.FirstRequest)
	defer timer.Stop()
	for {
		select {
		case <-st.holder.Done(): // before anything else is sent
			return st.holder.Err()
		default:
		}
		if err := st.push(); err != nil {
			return err
		}
		at, _ := st.deadline()
		timer.Reset(max(at.Sub(st.cfg.Now()), time.Millisecond))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-st.holder.Done():
			return st.holder.Err()
		case <-st.holder.Wake():
		case <-st.drain:
			st.drain = nil
			st.drains = st.cfg.Now().Add(upTo(st.cfg.Drain))
		case r := <-requests:
			if r.err != nil {
				return st.endOf(ctx, r.err)
			}
			if deny := st.request(r.request); deny != nil {
				return st.holder.Refuse(ctx, deny)
			}
		case <-timer.C:
			at, deny := st.deadline()
			switch {
			case st.cfg.Now().Before(at):
			case deny.Reason == attest.CredentialEnding || deny.Reason == attest.ShuttingDown:
				return deny // nobody is refused anything: the client is to come back
			default:
				return st.holder.Refuse(ctx, deny)
			}
		}
	}
}

// farAway is when a stream without any deadline looks at its clock again.
const farAway = 24 * time.Hour

// deadline returns when the stream ends if nothing happens, and as what.
func (st *stream) deadline() (time.Time, *attest.DenyError) {
	at, reason, detail := st.cfg.Now().Add(farAway), attest.InternalError, ""
	consider := func(t time.Time, r attest.Reason, d string) {
		if t.Before(at) {
			at, reason, detail = t, r, d
		}
	}
	if !st.asked {
		consider(st.opened.Add(st.cfg.FirstRequest), attest.RequestMalformed, "no request came in time")
	}
	if !st.ends.IsZero() {
		consider(st.ends, attest.CredentialEnding, "")
	}
	if !st.drains.IsZero() {
		consider(st.drains, attest.ShuttingDown, "")
	}
	if !st.dirtySince.IsZero() {
		consider(st.dirtySince.Add(st.cfg.SlowReader), attest.ReaderTooSlow, "the last response was not answered")
	}
	for _, sub := range st.subs {
		if !sub.active || sub.since.IsZero() {
			continue
		}
		switch sub.topic {
		case topicSVID:
			consider(sub.since.Add(st.cfg.Answer), attest.Overloaded, "no SVID was there in time")
		case topicBundle:
			consider(sub.since.Add(st.cfg.Answer), attest.AuthorityNotReady, "no bundle was there in time")
		}
	}
	return at, attest.Deny(reason, "", "%s", detail)
}

// request takes in one request. An error ends the stream.
func (st *stream) request(r *request) *attest.DenyError {
	if r.deny != nil {
		return r.deny
	}
	first := !st.asked
	if url := r.typeURL; url != TypeURL && (url != "" || first) {
		return attest.Deny(attest.RequestMalformed, "", "type URL %s", attest.Escape(url))
	}
	if first {
		st.asked = true
		// The only one that surely carries the Node. Its version and nonce are of
		// another stream.
		st.node = r.node
		return st.subscribe(r.names)
	}
	if r.nonce != st.nonce {
		// The client has not seen the last response yet; when it has, it says
		// again what it wants.
		st.metrics.stale.Inc()
		return nil
	}
	st.answer(r.refusal)
	return st.subscribe(r.names)
}

// answer takes in what the client says of the last response, once: text is why
// it refuses it, "" if it does not.
func (st *stream) answer(text string) {
	for _, sub := range st.carried {
		word := "ack"
		if text != "" {
			word, sub.refused = "nack", sub.sent
			if leftOut, ok := st.holder.Sample("nack"); ok {
				st.cfg.Log.Warn("a proxy refused a secret; what it had stays in use", "proxy", st.holder, "node", st.node.id, "nodeCluster", st.node.cluster, "name", sub.name, "version", sub.sent, "error", text, "leftOut", leftOut)
			}
		}
		st.metrics.answers.WithLabelValues(sub.topic.String(), word).Inc()
		st.holder.Answered(sub.name, sub.sent, text)
	}
	st.carried, st.dirtySince = nil, time.Time{}
}

// subscribe makes names the stream's set.
func (st *stream) subscribe(names []string) *attest.DenyError {
	if len(names) > maxNames {
		return attest.Deny(attest.NamesExceeded, "", "%d names", len(names))
	}
	before := st.unknown
	st.unknown = nil
	for _, sub := range st.subs {
		if !slices.Contains(names, sub.name) {
			sub.active, sub.sent, sub.since = false, "", time.Time{}
		}
	}
	for _, name := range names {
		t := topicOf(name, st.holder.Identity())
		if t == topicUnknown {
			st.note(name, before)
			continue
		}
		i := slices.IndexFunc(st.subs, func(sub *subscription) bool { return sub.name == name })
		if i < 0 {
			i, st.subs = len(st.subs), append(st.subs, &subscription{name: name, topic: t})
		}
		st.subs[i].active = true
	}
	some, svid := false, false
	for _, sub := range st.subs {
		some = some || sub.active
		svid = svid || sub.active && sub.topic == topicSVID
	}
	if some {
		st.holder.Want(svid)
	}
	return nil
}

// nameSeed makes hashes of names that no client can foresee.
var nameSeed = maphash.MakeSeed()

// note counts a name that stands for nothing, once for the stream, and logs it
// once for the proxy. It is left out of every answer; the others get theirs.
func (st *stream) note(name string, before map[uint64]struct{}) {
	hash := maphash.String(nameSeed, name) // names are as long as clients like
	_, known := before[hash]
	_, twice := st.unknown[hash]
	if st.unknown == nil {
		st.unknown = map[uint64]struct{}{}
	}
	st.unknown[hash] = struct{}{}
	if known || twice {
		return
	}
	st.metrics.unknown.Inc()
	if !st.holder.Unknown(name) {
		return
	}
	if leftOut, ok := st.holder.Sample("unknown name"); ok {
		st.cfg.Log.Info("a proxy asks for a name that stands for nothing", "proxy", st.holder, "node", st.node.id, "name", attest.Escape(name), "leftOut", leftOut)
	}
}

// current returns what sub stands for now, and whether it may be sent: there is
// one, and it has not ended. Envoy serves an expired leaf without a word.
func (st *stream) current(sub *subscription, now time.Time) (secret, bool) {
	switch sub.topic {
	case topicSVID:
		if v := st.holder.SVID(); v != nil && now.Before(v.ends) {
			return secret{resourceOf(sub.name, v.encoded), v.version}, true
		}
	case topicBundle:
		if b := st.holder.Bundle(); b != nil && now.Before(b.ends) {
			tail := b.spiffe
			if st.node.plainRoots {
				tail = b.plain
			}
			return secret{resourceOf(sub.name, tail), b.version}, true
		}
	}
	return secret{}, false
}

// push sends what the client does not have, if it has answered what it was sent
// before.
func (st *stream) push() error {
	now := st.cfg.Now()
	var due []*subscription
	var secrets []secret
	for _, sub := range st.subs {
		if !sub.active {
			continue
		}
		s, ok := st.current(sub, now)
		switch {
		case ok && s.version != sub.sent && s.version != sub.refused:
			due, secrets = append(due, sub), append(secrets, s)
			sub.since = time.Time{}
		case ok || sub.sent != "":
			sub.since = time.Time{}
		case sub.since.IsZero():
			sub.since = now
		}
	}
	switch {
	case len(due) == 0:
		st.dirtySince = time.Time{}
		return nil
	case st.carried != nil:
		if st.dirtySince.IsZero() {
			st.dirtySince = now
		}
		return nil
	}
	// A nonce that nobody can guess: an answer shows that the response was read,
	// so sending the next one finds room and does not block.
	st.nonce = rand.Text()
	for i, sub := range due {
		sub.sent, sub.refused = secrets[i].version, ""
		st.metrics.pushes.WithLabelValues(sub.topic.String()).Inc()
	}
	st.carried, st.dirtySince = due, time.Time{}
	if err := st.send(encodeResponse(versionFor(secrets), st.nonce, secrets)); err != nil {
		return fmt.Errorf("sending secrets: %w", err)
	}
	return nil
}

// versionFor is a response's version: its secret's, or a hash of its secrets'.
func versionFor(secrets []secret) string {
	if len(secrets) == 1 {
		return secrets[0].version
	}
	h := sha256.New()
	for _, s := range secrets {
		h.Write([]byte(s.version))
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}
