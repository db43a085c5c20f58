package publish

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/bundle"
)

// EndpointConfig is what [NewEndpoint] needs. All fields are required.
type EndpointConfig struct {
	Authority *ca.Authority
	// RefreshHint is how often readers are asked to come.
	RefreshHint time.Duration
	Registerer  prometheus.Registerer
	Log         *slog.Logger
	Now         func() time.Time
}

// Endpoint is the SPIFFE bundle endpoint as a handler (SPIFFE Federation section
// 5.1). It answers every path that it is given: where it is served is the
// server's.
type Endpoint struct {
	cfg     EndpointConfig
	current atomic.Pointer[document]
	answers *prometheus.CounterVec
}

// document is one bundle as it is sent.
type document struct {
	body     []byte
	tag      string // strong entity tag
	sequence uint64
	at       time.Time // from when on all readers hold it
	problem  string    // why a newer one could not be written
}

// NewEndpoint checks cfg. The bundle in force is served from here on.
func NewEndpoint(cfg EndpointConfig) (*Endpoint, error) {
	if cfg.Authority == nil || cfg.Registerer == nil || cfg.Log == nil || cfg.Now == nil {
		return nil, errors.New("making bundle endpoint: authority, metrics, log and clock are required")
	}
	if cfg.RefreshHint < time.Second || cfg.RefreshHint > bundle.MaxHint {
		return nil, fmt.Errorf("making bundle endpoint: a refresh hint of %s, want 1s to %s", cfg.RefreshHint, bundle.MaxHint)
	}
	e := &Endpoint{cfg: cfg, answers: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "hallmark_bundle_endpoint_answers_total", Help: "Answers of the bundle endpoint, by code.",
	}, []string{"code"})}
	if err := cfg.Registerer.Register(e.answers); err != nil {
		return nil, fmt.Errorf("making bundle endpoint: %w", err)
	}
	cfg.Authority.Subscribe(e.take)
	return e, nil
}

// take makes the document of s. The authority calls it with one snapshot at a
// time, in their order.
func (e *Endpoint) take(s *ca.Snapshot) {
	old := e.current.Load()
	if old != nil && old.sequence == s.Sequence() {
		return // a new issuing CA under the same roots
	}
	body, err := bundle.Of(s, e.cfg.RefreshHint).Marshal()
	if err != nil {
		e.cfg.Log.Error("the bundle endpoint cannot serve the newest bundle", "sequence", s.Sequence(), "error", err)
		next := document{problem: err.Error()}
		if old != nil {
			next = *old
			next.problem = err.Error()
		}
		e.current.Store(&next)
		return
	}
	sum := sha256.Sum256(body)
	e.current.Store(&document{
		body: body, tag: `"` + hex.EncodeToString(sum[:16]) + `"`, sequence: s.Sequence(),
		at: e.cfg.Now().Add(Hints * e.cfg.RefreshHint),
	})
}

// Report tells what the readers of the endpoint hold.
func (e *Endpoint) Report() []Reader {
	r := Reader{Name: "bundle endpoint", Problem: "there is no bundle yet"}
	if doc := e.current.Load(); doc != nil {
		r.Sequence, r.At, r.Problem = doc.sequence, doc.at, doc.problem
	}
	return []Reader{r}
}

// ServeHTTP answers GET with the newest bundle, and nothing else. It asks for no
// proof of who reads (section 5.1.1), and reads no body.
func (e *Endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	code := e.answer(w, r)
	e.answers.WithLabelValues(strconv.Itoa(code)).Inc()
}

func (e *Endpoint) answer(w http.ResponseWriter, r *http.Request) int {
	fail := func(code int) int {
		w.Header().Set("Cache-Control", "no-store")
		http.Error(w, http.StatusText(code), code)
		return code
	}
	if r.ContentLength != 0 {
		w.Header().Set("Connection", "close") // rather than read what nobody wants
	}
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		return fail(http.StatusMethodNotAllowed)
	}
	doc := e.current.Load()
	if doc == nil || doc.body == nil {
		return fail(http.StatusServiceUnavailable)
	}
	// A cache may keep it, and has to ask each time: what readers hold five hints
	// after a change must be the new bundle, whoever stands between.
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("ETag", doc.tag)
	if matches(r.Header.Values("If-None-Match"), doc.tag) {
		w.WriteHeader(http.StatusNotModified)
		return http.StatusNotModified
	}
	w.Header().Set("Content-Type", bundle.ContentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(doc.body)))
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if _, err := w.Write(doc.body); err != nil {
		e.cfg.Log.Debug("a reader of the bundle went away", "error", err)
	}
	return http.StatusOK
}

// matches tells whether a reader has the document already: weak comparison, as
// RFC 9110 section 13.1.2 has it.
func matches(headers []string, tag string) bool {
	for _, header := range headers {
		for named := range strings.SplitSeq(header, ",") {
			named = strings.TrimSpace(named)
			if named == "*" || strings.TrimPrefix(named, "W/") == tag {
				return true
			}
		}
	}
	return false
}
