package kube_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/kube"
)

// sees waits until the view holds pod, and no GET may help.
func (w *world) sees(t testing.TB, pod *corev1.Pod) {
	t.Helper()
	eventually(t, "the view holds "+pod.Name, func() bool {
		live, err := w.check(t.Context(), pod)
		return err == nil && live.Current && live.Pod.Ref.UID == string(pod.UID)
	})
	if n := w.count("get pods"); n != 0 {
		t.Errorf("%d GETs", n)
	}
}

// noGets lets no GET help the view.
func noGets(_ *world, c *kube.Config) { c.Limits.FreshWait = 10 * time.Second }

// TestListsInPages: an API server that knows no streamed lists.
func TestListsInPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, noGets)
	for i := range 1203 {
		w.put(newPod(fmt.Sprintf("many-%04d", i), fmt.Sprint("uid-", i)))
	}
	w.set(failWith("initial", http.StatusUnprocessableEntity, metav1.StatusReasonInvalid))
	begin := w.now()
	w.run(t)
	if n := w.count("list pods"); n != 3 {
		t.Errorf("%d pages", n)
	}
	for _, i := range []int{0, 499, 500, 1000, 1202} {
		w.sees(t, newPod(fmt.Sprintf("many-%04d", i), fmt.Sprint("uid-", i)))
	}
	live, err := w.check(t.Context(), w.pod)
	if err != nil || live.AsOf.Before(begin) {
		t.Errorf("%+v, %v", live, err)
	}
	w.put(newPod("later", "later"))
	w.sees(t, newPod("later", "later"))
}

// TestWatchGone: a version that the API server has forgotten leads to a new list,
// which tells what was missed.
func TestWatchGone(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(http.ResponseWriter){
		"answered":   func(w http.ResponseWriter) { write(w, 410, status(410, metav1.StatusReasonExpired, "too old")) },
		"an event":   func(w http.ResponseWriter) { watchError(w, status(410, metav1.StatusReasonExpired, "too old")) },
		"500 inside": func(w http.ResponseWriter) { watchError(w, status(500, metav1.StatusReasonUnknown, "etcd")) },
		"garbage":    func(w http.ResponseWriter) { fmt.Fprint(w, `{"type":"ADDED","object":[]}`) },
		"no JSON":    func(w http.ResponseWriter) { fmt.Fprint(w, `<html>`) },
		"no type":    func(w http.ResponseWriter) { fmt.Fprint(w, `{"object":{}}`) },
		"cut":        func(w http.ResponseWriter) { fmt.Fprint(w, `{"type":"ADDED","object":{"metadata":{"na`) },
		"huge": func(w http.ResponseWriter) {
			fmt.Fprint(w, `{"type":"ADDED","object":{"metadata":{"name":"`)
			large := bytes.Repeat([]byte("0"), 1<<20)
			for range 5 {
				if _, err := w.Write(large); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, noGets)
			w.set(func(rw http.ResponseWriter, r *http.Request) bool {
				what := r.Header.Get("X-What")
				if what == "watch pods" {
					answer(rw)
				}
				return what == "watch pods"
			})
			w.run(t)
			w.moves(t)
			changed := w.changes()
			w.remove(w.pod, true)
			// The watch is cut; the next begins where it ended, and fails.
			w.CloseClientConnections()
			w.put(newPod("missed", "missed"))
			w.sees(t, newPod("missed", "missed"))
			changed.wait(t, "pod-uid")
			_, err := w.check(t.Context(), w.pod)
			refused(t, "deleted meanwhile", err, attest.PodGone)
			if w.count("watch pods") == 0 {
				t.Error("no watch from a version was tried")
			}
			w.set(nil)
			w.put(newPod("later", "later"))
			w.sees(t, newPod("later", "later"))
		})
	}
}

func watchError(w http.ResponseWriter, s metav1.Status) {
	_ = json.NewEncoder(w).Encode(map[string]any{"type": "ERROR", "object": s})
}

// TestEventsInOddForms: fields in another order, unknown ones, unknown types.
func TestEventsInOddForms(t *testing.T) {
	t.Parallel()
	w := newWorld(t, noGets)
	pod, err := json.Marshal(newPod("odd", "odd"))
	if err != nil {
		t.Fatal(err)
	}
	w.set(func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("X-What") != "initial pods" {
			return false
		}
		fmt.Fprintf(rw, `{"more":{"type":["x"]},"object":%s,"type":"ADDED"}`, pod)
		fmt.Fprint(rw, `{"type":"SOMETHING","object":{"metadata":{"name":"x","resourceVersion":"5"}}}`)
		fmt.Fprint(rw, `{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"100","annotations":{"k8s.io/initial-events-end":"true"}}}}`)
		rw.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	})
	w.run(t)
	w.sees(t, newPod("odd", "odd"))
}

// TestSilence: a watch that delivers nothing is begun anew with a list.
func TestSilence(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world, c *kube.Config) {
		noGets(w, c)
		c.Limits.Silence = 100 * time.Millisecond
		w.bookmarks = 0
	})
	w.run(t)
	w.remove(w.pod, true)
	w.locked(func() { w.objects["pods"]["shop/missed"] = newPod("missed", "missed") }) // no event tells of it
	w.sees(t, newPod("missed", "missed"))
	_, err := w.check(t.Context(), w.pod)
	refused(t, "deleted meanwhile", err, attest.PodGone)
	if !strings.Contains(w.log.String(), "nothing came for 100ms") {
		t.Errorf("the log says %s", w.log.String())
	}
}

// moves waits until every watch has brought a bookmark.
func (w *world) moves(t testing.TB) {
	t.Helper()
	asOf := func() time.Time {
		live, err := w.check(t.Context(), w.pod)
		if err != nil {
			t.Fatal(err)
		}
		return live.AsOf
	}
	begin := w.now()
	eventually(t, "the view grows younger", func() bool { return asOf().After(begin) })
}

// TestAgeOfView: what counts is what the watch itself delivers; after a gap, a
// backlog is not taken for the present.
func TestAgeOfView(t *testing.T) {
	t.Parallel()
	begin := time.Unix(1_700_000_000, 0)
	now := begin
	v := kube.NewView(t, func() time.Time { return now })
	after := func(d time.Duration) { now = now.Add(d) }
	is := func(what string, want time.Time) {
		t.Helper()
		if got := v.AsOf(); !got.Equal(want) {
			t.Errorf("%s: as of %s, want %s", what, got, want)
		}
	}
	is("empty", time.Time{})
	v.OpenList()
	after(10 * time.Second)
	v.Replace("a", "b")
	is("a list is as of its beginning", begin)
	v.OpenWatch()
	is("a watch that is open shows nothing", begin)
	v.Event("a")
	is("an event", now)
	after(time.Minute)
	v.Bookmark()
	bookmark := now
	is("a bookmark", bookmark)
	after(30 * time.Second)
	v.OpenWatch()
	v.Event("a")
	is("an event after a short gap", now)
	last := now
	after(2 * time.Hour)
	v.OpenWatch()
	v.Event("b")
	is("an event after a long gap", last)
	v.Bookmark()
	is("the bookmark behind the backlog", now)
	v.Event("b")
	after(2 * time.Hour)
	v.OpenWatch()
	v.OpenInitial()
	v.Replace("a")
	is("the list of a watch is as of its end", now)
}

// TestStartsWithoutAPIServer: Run waits for one, says why it is not ready, and
// ends when it is told to.
func TestStartsWithoutAPIServer(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"refuses": failWith("", http.StatusForbidden, metav1.StatusReasonForbidden),
		"429":     failWith("", http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests),
		"500":     failWith("", http.StatusInternalServerError, metav1.StatusReasonInternalError),
		"closed":  nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil)
			w.set(fault)
			if fault == nil {
				w.Close()
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- w.cluster.Run(ctx) }()
			eventually(t, "it says why", func() bool {
				err := w.cluster.Ready()
				return err != nil && !strings.Contains(err.Error(), "first list") && strings.Contains(err.Error(), `cluster "Kubernetes": pods: `)
			})
			if w.metric(t, "hallmark_view_age_seconds", "nodes") != -1 || w.metric(t, "hallmark_cluster_keys_age_seconds") != -1 {
				t.Error("the metrics know an age")
			}
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(3 * time.Second):
				t.Error("it does not end")
			}
		})
	}
}

func TestReadyWantsKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.set(failWith("jwks", http.StatusForbidden, metav1.StatusReasonForbidden))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.cluster.Run(ctx) }()
	eventually(t, "all but keys", func() bool {
		err := w.cluster.Ready()
		return err != nil && strings.Contains(err.Error(), "keys: fetching keys: told to fail")
	})
	w.set(nil)
	eventually(t, "ready", func() bool { return w.cluster.Ready() == nil })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestProbe(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	texts := func() (good, bad []string) {
		for _, f := range w.cluster.Probe(t.Context()) {
			if f.Err == nil {
				good = append(good, f.What+": "+f.Note)
				continue
			}
			if f.Mend == "" {
				t.Errorf("%s: no mend", f.What)
			}
			bad = append(bad, f.What+": "+f.Err.Error())
		}
		return good, bad
	}
	good, bad := texts()
	if len(good) != 4 || len(bad) != 3 || !strings.HasPrefix(bad[0], "access: get nodes: ") || w.count("access") != 11 ||
		good[3] != "access: create tokenreviews.authentication.k8s.io, get /openid/v1/jwks, get pods, list pods, watch pods, get serviceaccounts, list serviceaccounts, watch serviceaccounts" {
		t.Errorf("good %q, bad %q", good, bad)
	}
	if strings.HasSuffix(bad[0], ": ") || !strings.Contains(bad[0], "not allowed") {
		t.Errorf("%q announces a reason, and gives none", bad[0])
	}
	w.set(failWith("jwks", http.StatusForbidden, metav1.StatusReasonForbidden))
	if _, bad = texts(); len(bad) != 4 || !strings.HasPrefix(bad[0], "keys of tokens: ") {
		t.Errorf("without keys: %q", bad)
	}
	w.set(failWith("access", http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable))
	if _, bad = texts(); len(bad) != 1 {
		t.Errorf("while access cannot be asked: %q", bad)
	}
	// A token that is not known is said once, whatever is asked first.
	for _, asked := range []string{"jwks", "access"} {
		w.set(failWith(asked, http.StatusUnauthorized, metav1.StatusReasonUnauthorized))
		if _, bad = texts(); len(bad) != 1 || !strings.Contains(bad[0], "does not know our credentials") {
			t.Errorf("a bad token, at %s: %q", asked, bad)
		}
	}
	w.Close()
	if good, bad = texts(); len(good) != 0 || len(bad) != 1 || !strings.HasPrefix(bad[0], `cluster "Kubernetes": `) {
		t.Errorf("without a server: %q, %q", good, bad)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	var good kube.Config
	newWorld(t, func(_ *world, c *kube.Config) { good = *c })
	for name, change := range map[string]func(*kube.Config){
		"id":             func(c *kube.Config) { c.ID = "" },
		"trust domain":   func(c *kube.Config) { c.TrustDomain = attest.TrustDomain{} },
		"way":            func(c *kube.Config) { c.REST = nil },
		"audiences":      func(c *kube.Config) { c.Audiences = nil },
		"empty audience": func(c *kube.Config) { c.Audiences = []string{""} },
		"time":           func(c *kube.Config) { c.ReviewCache = 0 },
		"feed":           func(c *kube.Config) { c.Feed = nil },
		"registerer":     func(c *kube.Config) { c.Registerer = nil },
		"log":            func(c *kube.Config) { c.Log = nil },
		"clock":          func(c *kube.Config) { c.Now = nil },
	} {
		cfg := good
		cfg.Registerer = prometheus.NewRegistry()
		change(&cfg)
		if _, err := kube.New(cfg); err == nil {
			t.Errorf("without %s: no error", name)
		}
	}
	if _, err := kube.New(good); err == nil {
		t.Error("metrics registered twice: no error")
	}
	second := good
	second.ID = "second"
	if _, err := kube.New(second); err != nil {
		t.Errorf("another cluster on the same registry: %v", err)
	}
}

func TestRESTConfig(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := kube.RESTConfig(""); err == nil || !strings.Contains(err.Error(), "attest.kubeconfig") {
		t.Errorf("outside of any pod: %v", err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if _, err := kube.RESTConfig(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a file that is not there: %v", err)
	}
	const text = `{apiVersion: v1, kind: Config, current-context: a, contexts: [{name: a, context: {cluster: a, user: a}}],
		clusters: [{name: a, cluster: {server: "https://127.0.0.1:6443"}}], users: [{name: a, user: {token: t}}]}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := kube.RESTConfig(path)
	if err != nil || cfg.Host != "https://127.0.0.1:6443" || cfg.BearerToken != "t" {
		t.Errorf("%v, %v", cfg, err)
	}
}
