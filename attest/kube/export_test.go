package kube

import (
	"encoding/json"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/hallmark-ca/hallmark/attest"
)

// CheckToken does what is done with a token before anybody is asked, with one
// key.
func CheckToken(token string, key jose.JSONWebKey, now time.Time, audiences []string) (attest.Bound, error) {
	jws, err := parseToken(token)
	if err != nil {
		return attest.Bound{}, err
	}
	if jws.Signatures[0].Header.KeyID != key.KeyID {
		return attest.Bound{}, attest.Deny(attest.TokenKeyUnknown, "", "")
	}
	own, err := verifyToken(jws, []jose.JSONWebKey{key})
	if err != nil {
		return attest.Bound{}, err
	}
	if err := own.check(now, audiences); err != nil {
		return attest.Bound{}, err
	}
	return own.bound(), nil
}

// View is a view whose nodes are driven by hand.
type View struct {
	tb testing.TB
	v  *view
}

// NewView returns a view that is complete but for its nodes.
func NewView(tb testing.TB, now func() time.Time) View {
	tb.Helper()
	v, err := newView(now, func(string) {}, func(string) {})
	if err != nil {
		tb.Fatal(err)
	}
	v.fresh[pods], v.fresh[accounts] = time.Unix(1<<40, 0), time.Unix(1<<40, 0)
	return View{tb, v}
}

// AsOf is the age of the view.
func (v View) AsOf() time.Time { return v.v.facts(attest.Bound{}).live.AsOf }

// OpenList, OpenInitial and OpenWatch are what a source tells.
func (v View) OpenList()    { v.v.begun(nodes, openList, 90*time.Second) }
func (v View) OpenInitial() { v.v.begun(nodes, openInitial, 90*time.Second) }
func (v View) OpenWatch()   { v.v.begun(nodes, openWatch, 90*time.Second) }

// Replace, Event and Bookmark are what a reflector tells.
func (v View) Replace(names ...string) {
	var list []any
	for _, n := range names {
		list = append(list, &object{name: name{name: n}, uid: n})
	}
	v.must(store{v.v, nodes}.Replace(list, ""))
}

func (v View) Event(n string) {
	v.must(store{v.v, nodes}.Update(&object{name: name{name: n}, uid: n}))
}

func (v View) Bookmark() { v.must(store{v.v, nodes}.Bookmark("")) }

func (v View) must(err error) {
	if err != nil {
		v.tb.Fatal(err)
	}
}

// TakeIn reads a watch of pods to its end into a view, which it returns.
func TakeIn(tb testing.TB, stream io.Reader) (view any) {
	tb.Helper()
	v := NewView(tb, time.Now)
	p, err := newPool()
	v.must(err)
	_, idle := newIdle(tb.Context(), time.Hour)
	defer idle.stop()
	m := &meter{r: stream, idle: idle}
	e := &events{source: &source{cluster: "Kubernetes", wire: func() wire { return &wirePod{} }, pool: p}, meter: m, dec: json.NewDecoder(m)}
	for {
		kind, o, err := e.next()
		if errors.Is(err, io.EOF) {
			return v
		}
		v.must(err)
		if kind != watch.Added {
			tb.Fatalf("got %s", kind)
		}
		v.must(store{v.v, pods}.Add(o))
	}
}
