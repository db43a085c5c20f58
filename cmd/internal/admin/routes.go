package admin

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	utiljson "sigs.k8s.io/json"

	"github.com/hallmark-ca/hallmark/ca/rotate"
)

// action is one command: what of an order it takes, and what it does.
type action struct {
	root, certificate, force bool
	do                       func(ctx context.Context, r Rotation, who string, o *Order) error
}

var actions = map[Action]action{
	Start: {do: func(ctx context.Context, r Rotation, who string, _ *Order) error { return r.Start(ctx, who) }},
	Activate: {force: true, do: func(ctx context.Context, r Rotation, who string, o *Order) error {
		return r.Activate(ctx, who, o.pass())
	}},
	Retire: {root: true, force: true, do: func(ctx context.Context, r Rotation, who string, o *Order) error {
		return r.Retire(ctx, who, o.Root, o.pass())
	}},
	Abort: {do: func(ctx context.Context, r Rotation, who string, _ *Order) error { return r.Abort(ctx, who) }},
	Trust: {certificate: true, do: func(ctx context.Context, r Rotation, who string, o *Order) error {
		der, err := ParseCertificate([]byte(o.Certificate))
		if err != nil {
			return &badOrderError{err.Error()}
		}
		return r.Trust(ctx, who, der)
	}},
	Untrust: {root: true, force: true, do: func(ctx context.Context, r Rotation, who string, o *Order) error {
		return r.Untrust(ctx, who, o.Root, o.pass())
	}},
	Pause:  {do: func(ctx context.Context, r Rotation, who string, _ *Order) error { return r.Pause(ctx, who) }},
	Resume: {do: func(ctx context.Context, r Rotation, who string, _ *Order) error { return r.Resume(ctx, who) }},
	Run:    {do: func(ctx context.Context, r Rotation, who string, _ *Order) error { return r.RunAll(ctx, who) }},
}

// pass is what the rotation is told. An empty reason is for the rotation to
// refuse.
func (o *Order) pass() rotate.Force {
	if o.Force == nil {
		return rotate.Force{}
	}
	return rotate.Force{Pass: true, Reason: o.Force.Reason}
}

// ParseCertificate returns the DER of the one certificate in PEM that text holds,
// and nothing else.
func ParseCertificate(text []byte) ([]byte, error) {
	block, rest := pem.Decode(text)
	switch {
	case block == nil:
		return nil, errors.New("it holds no PEM")
	case block.Type != "CERTIFICATE":
		return nil, fmt.Errorf("it holds a %q, and no CERTIFICATE", block.Type)
	}
	if more, _ := pem.Decode(rest); more != nil {
		return nil, errors.New("it holds more than one PEM block: give one root")
	}
	return block.Bytes, nil
}

// badOrderError is a request that makes no sense, whatever the state.
type badOrderError struct{ why string }

// Error returns what is wrong with it.
func (e *badOrderError) Error() string { return e.why }

// handler answers one request, for who, or fails.
type handler func(ctx context.Context, who string, r *http.Request) (any, error)

// routes returns what answers. Steps run under ctx, not under their request: who
// goes away in the middle of one does not cut it.
func (s *Server) routes(ctx context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /v1/status", s.guard(s.status))
	mux.Handle("GET /v1/rotation", s.guard(s.rotation))
	for name, a := range actions {
		mux.Handle("POST /v1/rotation/"+string(name), s.guard(func(_ context.Context, who string, r *http.Request) (any, error) {
			return s.order(ctx, name, a, who, r)
		}))
	}
	mux.Handle("/", s.guard(func(context.Context, string, *http.Request) (any, error) {
		return nil, &statusError{http.StatusNotFound, fault{Why: "there is no such route, or not for this method"}}
	}))
	return mux
}

// statusError is an answer that is made already.
type statusError struct {
	code int
	fault
}

// Error returns what the peer is told.
func (e *statusError) Error() string { return e.Why }

// guard answers only those who may ask, only so many at once, and turns every
// error into an answer.
func (s *Server) guard(h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		who, err := s.who(r.Context())
		if err != nil {
			s.cfg.Log.Warn("refused at the admin socket", "error", err)
			write(w, http.StatusForbidden, fault{Why: "only root and the account that the server runs as may ask"})
			return
		}
		select {
		case s.places <- struct{}{}:
			defer func() { <-s.places }()
		default:
			write(w, http.StatusServiceUnavailable, fault{Why: fmt.Sprintf("%d requests are being worked on already", maxRequests), Mend: "try again in a moment"})
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		answer, err := h(r.Context(), who, r)
		if err != nil {
			code, f := s.explain(r, err)
			write(w, code, f)
			return
		}
		write(w, http.StatusOK, answer)
	})
}

// explain turns an error into an answer. What nobody foresaw is in the log alone.
func (s *Server) explain(r *http.Request, err error) (int, fault) {
	var refused *rotate.RefusedError
	var bad *badOrderError
	var made *statusError
	switch {
	case errors.As(err, &made):
		return made.code, made.fault
	case errors.As(err, &refused):
		return http.StatusConflict, fault{Why: refused.Why, Mend: refused.Mend}
	case errors.As(err, &bad):
		return http.StatusBadRequest, fault{Why: bad.why}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return http.StatusServiceUnavailable, fault{Why: "it has not ended in time, and may go on", Mend: "hallmark rotate status shows where it stands"}
	}
	id := s.born + "-" + strconv.FormatUint(s.ids.Add(1), 10)
	s.cfg.Log.Error("a request at the admin socket failed", "route", r.Pattern, "id", id, "error", err)
	return http.StatusInternalServerError, fault{Why: "it failed", Mend: "the server's log says why (id " + id + "), and hallmark rotate status how it stands", ID: id}
}

func write(w http.ResponseWriter, code int, body any) {
	text, err := json.Marshal(body)
	if err != nil { // a float that is no number, such as a ratio of nothing
		code, text = http.StatusInternalServerError, []byte(`{"why":"the answer cannot be written as JSON"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(text, '\n')) // who has gone needs no answer
}

// look reads the rotation's status, one reader at a time: each asks the census of
// all consumers.
func (s *Server) look(ctx context.Context) (RotationStatus, error) {
	select {
	case s.views <- struct{}{}:
		defer func() { <-s.views }()
	case <-ctx.Done():
		return RotationStatus{}, context.Cause(ctx)
	}
	status, err := s.cfg.Rotation.Status(ctx)
	answer := RotationStatus{Status: status}
	if err != nil { // what this process knows is told all the same
		answer.Error = err.Error()
	}
	return answer, nil
}

func (s *Server) rotation(ctx context.Context, _ string, r *http.Request) (any, error) {
	if err := empty(r); err != nil {
		return nil, err
	}
	return s.look(ctx)
}

func (s *Server) status(ctx context.Context, _ string, r *http.Request) (any, error) {
	if err := empty(r); err != nil {
		return nil, err
	}
	rotation, err := s.look(ctx)
	if err != nil {
		return nil, err
	}
	answer := Status{At: s.cfg.Now().UTC(), Ready: true, Facts: s.cfg.Facts(), Conditions: s.cfg.Conditions(), Rotation: rotation}
	for _, c := range answer.Conditions {
		answer.Ready = answer.Ready && c.Ready
	}
	return answer, nil
}

// order carries out one command.
func (s *Server) order(ctx context.Context, name Action, a action, who string, r *http.Request) (any, error) {
	o, err := read(r)
	if err == nil {
		err = a.check(name, o)
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, orderTime)
	defer cancel()
	start := time.Now()
	err = a.do(ctx, s.cfg.Rotation, who, o)
	s.cfg.Log.Info("a command of the rotation", "action", string(name), "who", who, "root", o.Root, "forced", o.Force != nil, "done", err == nil, "took", time.Since(start).String())
	if err != nil {
		return nil, err
	}
	status, err := s.look(ctx)
	if err != nil { // the step is taken all the same
		status.Error = "it is done, and how the rotation stands now was not read in time"
	}
	return status, nil
}

// read reads the body strictly: a key that is misspelt, said twice, or in other
// case is an error.
func read(r *http.Request) (*Order, error) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return nil, &badOrderError{"the body has to be application/json"}
	}
	text, err := io.ReadAll(r.Body)
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, &statusError{http.StatusRequestEntityTooLarge, fault{Why: fmt.Sprintf("the body has more than %d bytes", maxBody)}}
	case err != nil:
		return nil, &badOrderError{"the body was not read to its end"}
	case !strings.HasPrefix(strings.TrimLeft(string(text), " \t\r\n"), "{"): // null is no order
		return nil, &badOrderError{"the body is no JSON object"}
	}
	o := &Order{}
	problems, err := utiljson.UnmarshalStrict(text, o)
	if err == nil {
		err = errors.Join(problems...)
	}
	if err != nil {
		return nil, &badOrderError{"the body is not read: " + err.Error()}
	}
	return o, nil
}

// check refuses what the action does not take.
func (a action) check(name Action, o *Order) error {
	for _, part := range []struct {
		name         string
		given, taken bool
	}{{"root", o.Root != "", a.root}, {"certificate", o.Certificate != "", a.certificate}, {"force", o.Force != nil, a.force}} {
		if part.given && !part.taken {
			return &badOrderError{fmt.Sprintf("%s takes no %s", name, part.name)}
		}
	}
	return nil
}

// empty refuses a body where none belongs.
func empty(r *http.Request) error {
	if n, err := r.Body.Read(make([]byte, 1)); n > 0 || err != nil && !errors.Is(err, io.EOF) {
		return &badOrderError{"a body does not belong here"}
	}
	return nil
}
