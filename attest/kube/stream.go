package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

const (
	maxObject  = maxAnswer // one object in a list or watch, in bytes; etcd takes 1.5 MiB
	maxObjects = 1 << 20   // objects in a list
	pageSize   = 500
	listIdle   = 30 * time.Second // between two reads of a list
)

// source lists and watches one resource, as client-go's reflector asks. Lists are
// decoded as they arrive, one object at a time.
type source struct {
	api     *api
	cluster string
	path    string
	wire    func() wire
	pool    *pool
	silence time.Duration
	begun   func(opening)
	failed  func(error) // nil: an answer has come
}

// List implements cache.Lister.
func (s *source) List(opts metav1.ListOptions) (runtime.Object, error) {
	return s.ListWithContext(context.Background(), opts)
}

// Watch implements cache.Watcher.
func (s *source) Watch(opts metav1.ListOptions) (watch.Interface, error) {
	return s.WatchWithContext(context.Background(), opts)
}

// ListWithContext implements cache.ListerWithContext. Whatever version the
// reflector would be content with, the first page asks for what is true now: the
// age of the view counts from it.
func (s *source) ListWithContext(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
	if opts.Continue == "" {
		s.begun(openList)
	}
	query := url.Values{"limit": {strconv.FormatInt(opts.Limit, 10)}}
	if opts.Continue != "" {
		query.Set("continue", opts.Continue)
	}
	ctx, idle := newIdle(ctx, listIdle)
	defer idle.stop()
	body, err := s.api.open(ctx, http.MethodGet, s.path, query, nil)
	s.failed(err)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	list, err := s.decodeList(&meter{r: body, idle: idle})
	s.failed(err)
	return list, err
}

func (s *source) decodeList(r *meter) (*objects, error) {
	list := &objects{}
	dec := json.NewDecoder(r)
	err := eachField(dec, func(field string) error {
		r.renew()
		switch field {
		case "metadata":
			return dec.Decode(&list.ListMeta)
		case "items":
			return eachItem(dec, func() error {
				r.renew()
				if len(list.Items) == maxObjects {
					return fmt.Errorf("more than %d objects", maxObjects)
				}
				w := s.wire()
				if err := dec.Decode(w); err != nil {
					return err
				}
				list.Items = append(list.Items, w.object(s.cluster, s.pool))
				return nil
			})
		}
		return skip(dec)
	})
	if err != nil {
		return nil, fmt.Errorf("decoding list: %w", err)
	}
	return list, nil
}

// WatchWithContext implements cache.WatcherWithContext.
func (s *source) WatchWithContext(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	initial := opts.SendInitialEvents != nil && *opts.SendInitialEvents
	query := url.Values{"watch": {"true"}, "allowWatchBookmarks": {"true"}}
	if initial {
		s.begun(openInitial)
		// No version: the initial events are of now, not of what was seen last.
		query.Set("sendInitialEvents", "true")
		query.Set("resourceVersionMatch", string(metav1.ResourceVersionMatchNotOlderThan))
	} else {
		s.begun(openWatch)
		query.Set("resourceVersion", opts.ResourceVersion)
	}
	if opts.TimeoutSeconds != nil {
		query.Set("timeoutSeconds", strconv.FormatInt(*opts.TimeoutSeconds, 10))
	}
	ctx, idle := newIdle(ctx, s.silence)
	body, err := s.api.open(ctx, http.MethodGet, s.path, query, nil)
	s.failed(err)
	if err != nil {
		idle.stop()
		if initial {
			// In this state the reflector waits on a refused connection without
			// hearing that it is to stop; any other error it takes for "list".
			return nil, errors.New(err.Error())
		}
		return nil, err
	}
	r := &meter{r: body, idle: idle}
	return watch.NewStreamWatcher(&events{source: s, body: body, meter: r, dec: json.NewDecoder(r)}, reporter{}), nil
}

// events decodes a watch.
type events struct {
	source *source
	body   io.Closer
	meter  *meter
	dec    *json.Decoder
}

// Decode implements watch.Decoder. A watch that has been silent for too long
// ends as if its version had expired: then the reflector lists anew, which alone
// shows whether anything was missed.
func (e *events) Decode() (watch.EventType, runtime.Object, error) {
	kind, o, err := e.next()
	if err == nil {
		return kind, o, nil
	}
	if e.meter.idle.fired() {
		silent := fmt.Errorf("nothing came for %s", e.source.silence)
		e.source.failed(silent)
		return watch.Error, &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusGone, Reason: metav1.StatusReasonExpired, Message: silent.Error()}, nil
	}
	return "", nil, err
}

func (e *events) next() (watch.EventType, runtime.Object, error) {
	e.meter.renew()
	var kind string
	var raw json.RawMessage
	var o runtime.Object
	err := eachField(e.dec, func(field string) error {
		switch {
		case field == "type":
			return e.dec.Decode(&kind)
		case field == "object" && kind != "" && kind != string(watch.Error):
			w := e.source.wire()
			if err := e.dec.Decode(w); err != nil {
				return err
			}
			o = w.object(e.source.cluster, e.source.pool)
			return nil
		case field == "object":
			return e.dec.Decode(&raw)
		}
		return skip(e.dec)
	})
	switch {
	case err != nil:
		return "", nil, err
	case kind == string(watch.Error):
		status := &metav1.Status{}
		if err := json.Unmarshal(raw, status); err != nil {
			return "", nil, err
		}
		return watch.Error, status, nil
	case kind == "" || o == nil && raw == nil:
		return "", nil, errors.New("an event without type or object")
	case o == nil: // the object came first
		w := e.source.wire()
		if err := json.Unmarshal(raw, w); err != nil {
			return "", nil, err
		}
		o = w.object(e.source.cluster, e.source.pool)
	}
	return watch.EventType(kind), o, nil
}

// Close implements watch.Decoder.
func (e *events) Close() {
	e.meter.idle.stop()
	e.body.Close()
}

// reporter implements watch.Reporter: what could not be decoded ends the watch,
// and the reflector begins anew.
type reporter struct{}

// AsObject implements watch.Reporter.
func (reporter) AsObject(err error) runtime.Object {
	return &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Reason: metav1.StatusReasonUnknown, Message: err.Error()}
}

// eachField calls fn for each field of the object that comes next; fn reads its
// value.
func eachField(dec *json.Decoder, fn func(field string) error) error {
	if err := expect(dec, '{'); err != nil {
		return err
	}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return err
		}
		field, ok := t.(string)
		if !ok {
			return fmt.Errorf("field name %v", t)
		}
		if err := fn(field); err != nil {
			return err
		}
	}
	return expect(dec, '}')
}

// eachItem calls fn for each item of the array that comes next; null is an empty
// one.
func eachItem(dec *json.Decoder, fn func() error) error {
	t, err := dec.Token()
	switch {
	case err != nil:
		return err
	case t == nil:
		return nil
	case t != json.Delim('['):
		return fmt.Errorf("want an array, got %v", t)
	}
	for dec.More() {
		if err := fn(); err != nil {
			return err
		}
	}
	return expect(dec, ']')
}

func expect(dec *json.Decoder, want json.Delim) error {
	t, err := dec.Token()
	if err != nil {
		return err
	}
	if t != want {
		return fmt.Errorf("want %v, got %v", want, t)
	}
	return nil
}

func skip(dec *json.Decoder) error {
	var raw json.RawMessage
	return dec.Decode(&raw)
}
