package kube_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	authv1 "k8s.io/api/authentication/v1"
	authzv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/attest/kube"
)

// apiServer speaks as much of the Kubernetes API as this package asks, over
// HTTP, and fails as it is told. What only a real one can show is tested with a
// real one elsewhere.
type apiServer struct {
	*httptest.Server
	key *signingKey

	mu        sync.Mutex // guards all below
	published []jose.JSONWebKey
	objects   map[string]map[string]any // by resource, by namespace/name
	events    []event
	version   int
	moved     chan struct{} // closed when an event is added
	counts    map[string]int
	fault     func(http.ResponseWriter, *http.Request) bool // true: it has answered
	tweak     func(*authv1.TokenReviewStatus)
	bookmarks time.Duration
}

type event struct {
	version  int
	resource string
	kind     string
	object   any
}

// signingKey signs tokens as an API server does.
type signingKey struct {
	private *ecdsa.PrivateKey
	id      string
}

func newKey(t testing.TB, id string) *signingKey {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &signingKey{private, id}
}

func (k *signingKey) public() jose.JSONWebKey {
	return jose.JSONWebKey{Key: &k.private.PublicKey, KeyID: k.id, Algorithm: string(jose.ES256), Use: "sig"}
}

func (k *signingKey) sign(t testing.TB, claims any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: k.private, KeyID: k.id}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func newAPIServer(t testing.TB) *apiServer {
	t.Helper()
	s := &apiServer{
		key: newKey(t, "key-1"), objects: map[string]map[string]any{"pods": {}, "nodes": {}, "serviceaccounts": {}},
		version: 100, moved: make(chan struct{}), counts: map[string]int{}, bookmarks: 20 * time.Millisecond,
	}
	s.published = []jose.JSONWebKey{s.key.public()}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// set makes fault the way in which the server fails; nil: it does not.
func (s *apiServer) set(fault func(http.ResponseWriter, *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = fault
}

func (s *apiServer) locked(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
}

// count returns how often something was asked for: "review", "jwks", "access",
// or get, list, initial, watch and the resource.
func (s *apiServer) count(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[what]
}

// put adds or changes an object, as the watch would tell.
func (s *apiServer) put(object metav1.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resource, key := resourceOf(object), object.GetNamespace()+"/"+object.GetName()
	kind := "MODIFIED"
	if old, ok := s.objects[resource][key].(metav1.Object); !ok || old.GetUID() != object.GetUID() {
		if ok {
			s.tell(resource, "DELETED", old)
		}
		kind = "ADDED"
	}
	s.version++
	object.SetResourceVersion(strconv.Itoa(s.version))
	s.objects[resource][key] = object
	s.tell(resource, kind, object)
}

// remove deletes an object; quietly: no watch is told of it.
func (s *apiServer) remove(object metav1.Object, quietly bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resource := resourceOf(object)
	s.version++
	delete(s.objects[resource], object.GetNamespace()+"/"+object.GetName())
	if !quietly {
		s.tell(resource, "DELETED", object)
	}
}

func (s *apiServer) tell(resource, kind string, object any) {
	s.events = append(s.events, event{s.version, resource, kind, object})
	close(s.moved)
	s.moved = make(chan struct{})
}

func resourceOf(object any) string {
	switch object.(type) {
	case *corev1.Pod:
		return "pods"
	case *corev1.Node:
		return "nodes"
	}
	return "serviceaccounts"
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	var what string
	switch {
	case r.URL.Path == "/openid/v1/jwks":
		what = "jwks"
	case strings.HasSuffix(r.URL.Path, "/tokenreviews") && r.Method == http.MethodPost:
		what = "review"
	case strings.HasSuffix(r.URL.Path, "/selfsubjectaccessreviews"):
		what = "access"
	case r.URL.Query().Get("sendInitialEvents") == "true":
		what = "initial " + parts[2]
	case r.URL.Query().Get("watch") == "true":
		what = "watch " + parts[2]
	case len(parts) == 3:
		what = "list " + parts[2]
	case len(parts) == 6:
		what = "get " + parts[4]
	default:
		what = "get " + parts[2]
	}
	s.mu.Lock()
	s.counts[what]++
	fault := s.fault
	s.mu.Unlock()
	r.Header.Set("X-What", what)
	if fault != nil && fault(w, r) {
		return
	}
	switch verb, resource, _ := strings.Cut(what, " "); verb {
	case "jwks":
		s.mu.Lock()
		defer s.mu.Unlock()
		write(w, http.StatusOK, jose.JSONWebKeySet{Keys: s.published})
	case "review":
		s.review(w, r)
	case "access":
		var review authzv1.SelfSubjectAccessReview
		_ = json.NewDecoder(r.Body).Decode(&review)
		review.Status.Allowed = review.Spec.ResourceAttributes == nil || review.Spec.ResourceAttributes.Resource != "nodes"
		write(w, http.StatusCreated, review)
	case "list":
		s.list(w, r, resource)
	case "get":
		s.get(w, resource, parts)
	default:
		s.watch(w, r, resource, verb == "initial")
	}
}

func write(w http.ResponseWriter, code int, object any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(object)
}

func status(code int, reason metav1.StatusReason, message string) metav1.Status {
	return metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
		Code: int32(code), Reason: reason, Message: message,
	}
}

// failWith fails every request whose kind begins with what.
func failWith(what string, code int, reason metav1.StatusReason) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.Header.Get("X-What"), what) {
			return false
		}
		write(w, code, status(code, reason, "told to fail"))
		return true
	}
}

// hang lets every request whose kind begins with what wait until its client
// leaves.
func hang(what string) func(http.ResponseWriter, *http.Request) bool {
	return func(_ http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.Header.Get("X-What"), what) {
			return false
		}
		_, _ = io.Copy(io.Discard, r.Body) // else the server does not see the client leave
		<-r.Context().Done()
		return true
	}
}

func (s *apiServer) review(w http.ResponseWriter, r *http.Request) {
	var review authv1.TokenReview
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
		write(w, http.StatusBadRequest, status(http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error()))
		return
	}
	var claims tokenClaims
	_, rest, _ := strings.Cut(review.Spec.Token, ".")
	payload, _, _ := strings.Cut(rest, ".")
	raw, _ := base64.RawURLEncoding.DecodeString(payload)
	_ = json.Unmarshal(raw, &claims)
	k := claims.Kubernetes
	review.Status = authv1.TokenReviewStatus{Authenticated: true, Audiences: claims.Audience, User: authv1.UserInfo{
		Username: claims.Subject, UID: k.Account.UID,
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + k.Namespace, "system:authenticated"},
		Extra:  map[string]authv1.ExtraValue{"authentication.kubernetes.io/credential-id": {"JTI=" + claims.ID}},
	}}
	for name, ref := range map[string]*ref{"pod": k.Pod, "node": k.Node} {
		if ref != nil {
			review.Status.User.Extra["authentication.kubernetes.io/"+name+"-name"] = authv1.ExtraValue{ref.Name}
			review.Status.User.Extra["authentication.kubernetes.io/"+name+"-uid"] = authv1.ExtraValue{ref.UID}
		}
	}
	s.mu.Lock()
	tweak := s.tweak
	s.mu.Unlock()
	if tweak != nil {
		tweak(&review.Status)
	}
	write(w, http.StatusCreated, review)
}

func (s *apiServer) get(w http.ResponseWriter, resource string, parts []string) {
	key := "/" + parts[len(parts)-1]
	if len(parts) == 6 {
		key = parts[3] + key
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if object, ok := s.objects[resource][key]; ok {
		write(w, http.StatusOK, object)
		return
	}
	write(w, http.StatusNotFound, status(http.StatusNotFound, metav1.StatusReasonNotFound, key))
}

func (s *apiServer) list(w http.ResponseWriter, r *http.Request, resource string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := slices.Sorted(mapsKeys(s.objects[resource]))
	after := r.URL.Query().Get("continue")
	meta := metav1.ListMeta{ResourceVersion: strconv.Itoa(s.version)}
	limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
	var items []any
	for _, key := range keys {
		if key <= after {
			continue
		}
		if len(items) == limit && limit > 0 {
			meta.Continue = after
			break
		}
		items = append(items, s.objects[resource][key])
		after = key
	}
	write(w, http.StatusOK, map[string]any{"kind": "List", "apiVersion": "v1", "metadata": meta, "items": items})
}

func mapsKeys(m map[string]any) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func (s *apiServer) watch(w http.ResponseWriter, r *http.Request, resource string, initial bool) {
	flush := func() { w.(http.Flusher).Flush() }
	send := func(kind string, object any) {
		_ = json.NewEncoder(w).Encode(map[string]any{"type": kind, "object": object})
	}
	bookmark := func(version int, end bool) {
		meta := map[string]any{"resourceVersion": strconv.Itoa(version)}
		if end {
			meta["annotations"] = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
		}
		send("BOOKMARK", map[string]any{"kind": "Whatever", "metadata": meta})
	}
	w.Header().Set("Content-Type", "application/json")
	s.mu.Lock()
	position := len(s.events)
	if initial {
		for _, object := range s.objects[resource] {
			send("ADDED", object)
		}
		bookmark(s.version, true)
	} else if from, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion")); true {
		for position = 0; position < len(s.events) && s.events[position].version <= from; {
			position++
		}
	}
	s.mu.Unlock()
	flush()
	for {
		s.mu.Lock()
		for ; position < len(s.events); position++ {
			if e := s.events[position]; e.resource == resource {
				send(e.kind, e.object)
			}
		}
		moved, version, every := s.moved, s.version, s.bookmarks
		s.mu.Unlock()
		flush()
		var tick <-chan time.Time
		if every > 0 {
			tick = time.After(every)
		}
		select {
		case <-moved:
		case <-tick:
			bookmark(version, false)
		case <-r.Context().Done():
			return
		}
	}
}

// tokenClaims are what an API server writes into a token.
type tokenClaims struct {
	Issuer     string   `json:"iss,omitempty"`
	Subject    string   `json:"sub,omitempty"`
	Audience   []string `json:"aud,omitempty"`
	Expiry     int64    `json:"exp,omitempty"`
	NotBefore  int64    `json:"nbf,omitempty"`
	ID         string   `json:"jti,omitempty"`
	Kubernetes struct {
		Namespace string `json:"namespace,omitempty"`
		Account   ref    `json:"serviceaccount"`
		Pod       *ref   `json:"pod,omitempty"`
		Node      *ref   `json:"node,omitempty"`
	} `json:"kubernetes.io"`
}

type ref struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

// world is a server with one running pod, and a cluster that watches it.
type world struct {
	*apiServer
	cluster  *kube.Cluster
	feed     attest.Feed
	registry *prometheus.Registry
	log      lockedBuffer
	pod      *corev1.Pod
	node     *corev1.Node
	account  *corev1.ServiceAccount

	clock struct {
		sync.Mutex
		ahead time.Duration
	}
}

func (w *world) now() time.Time {
	w.clock.Lock()
	defer w.clock.Unlock()
	return time.Now().Add(w.clock.ahead)
}

// pass lets time go by on the cluster's clock alone.
func (w *world) pass(d time.Duration) {
	w.clock.Lock()
	defer w.clock.Unlock()
	w.clock.ahead += d
}

func newWorld(t testing.TB, change func(*world, *kube.Config)) *world {
	t.Helper()
	w := &world{apiServer: newAPIServer(t), registry: prometheus.NewPedanticRegistry()}
	w.account = &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "cart", UID: "sa-uid"}}
	w.node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1", UID: "node-uid"}}
	w.pod = newPod("cart-1", "pod-uid")
	for _, o := range []metav1.Object{w.account, w.node, w.pod} {
		w.put(o)
	}
	cfg := kube.Config{
		ID: "Kubernetes", TrustDomain: attesttest.Domain(t, "cluster.local"), REST: &rest.Config{Host: w.URL},
		Audiences: []string{"istio-ca", "other"}, ReviewCache: 10 * time.Minute, Feed: &w.feed,
		Limits:     kube.Limits{CallTime: 500 * time.Millisecond, FreshWait: 100 * time.Millisecond},
		Registerer: w.registry, Log: slog.New(slog.NewTextHandler(&w.log, nil)), Now: w.now,
	}
	if change != nil {
		change(w, &cfg)
	}
	var err error
	if w.cluster, err = kube.New(cfg); err != nil {
		t.Fatal(err)
	}
	return w
}

// run starts the cluster and waits until it is ready.
func (w *world) run(t testing.TB) *world {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.cluster.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("run did not end")
		}
	})
	eventually(t, "ready", func() bool { return w.cluster.Ready() == nil })
	return w
}

func newPod(name, uid string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(uid), Labels: map[string]string{"app": "cart"}},
		Spec: corev1.PodSpec{
			ServiceAccountName: "cart", NodeName: "node-1",
			Containers: []corev1.Container{{Name: "app", Image: "registry.example/cart:1"}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}},
			ContainerStatuses: []corev1.ContainerStatus{{
				Name: "app", ImageID: "registry.example/cart@sha256:1", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
			}},
		},
	}
}

// claims are those of a token that is bound to pod.
func (w *world) claims(pod *corev1.Pod) tokenClaims {
	now := w.now()
	c := tokenClaims{
		Issuer: "https://kubernetes.default.svc", Subject: "system:serviceaccount:" + pod.Namespace + ":" + pod.Spec.ServiceAccountName,
		Audience: []string{"istio-ca"}, Expiry: now.Add(time.Hour).Unix(), NotBefore: now.Unix(), ID: "jti-" + string(pod.UID),
	}
	k := &c.Kubernetes
	k.Namespace, k.Account = pod.Namespace, ref{pod.Spec.ServiceAccountName, string(w.account.UID)}
	k.Pod = &ref{pod.Name, string(pod.UID)}
	k.Node = &ref{w.node.Name, string(w.node.UID)}
	return c
}

func (w *world) token(t testing.TB, pod *corev1.Pod) string {
	t.Helper()
	return w.key.sign(t, w.claims(pod))
}

func (w *world) bound(pod *corev1.Pod) attest.Bound {
	return attest.Bound{
		Namespace: pod.Namespace, ServiceAccount: pod.Spec.ServiceAccountName, ServiceAccountUID: string(w.account.UID),
		PodName: pod.Name, PodUID: string(pod.UID), NodeName: w.node.Name, NodeUID: string(w.node.UID), Reviewed: true,
	}
}

// eventually waits until is holds.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	for !is() {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
		<-time.After(2 * time.Millisecond)
	}
}

// lockedBuffer takes a log while it is read.
type lockedBuffer struct {
	mu sync.Mutex // guards b
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// metric returns the value of a metric whose labels contain all given.
func (w *world) metric(t testing.TB, name string, labels ...string) float64 {
	t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			text := fmt.Sprint(m.GetLabel())
			if !slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(text, `"`+l+`"`) }) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

// signBytes signs what need not be JSON.
func (k *signingKey) signBytes(payload []byte) (string, bool) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: k.private, KeyID: k.id}}, nil)
	if err != nil {
		return "", false
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return "", false
	}
	token, err := jws.CompactSerialize()
	return token, err == nil
}

// changeLog keeps what the feed announced.
type changeLog struct{ uids chan string }

func (w *world) changes() *changeLog {
	c := &changeLog{make(chan string, 1000)}
	w.feed.Subscribe(func(change attest.Change) { c.uids <- change.Instance.PodUID })
	return c
}

// wait drops announcements until one of uid has come.
func (c *changeLog) wait(t testing.TB, uid string) {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		select {
		case got := <-c.uids:
			if got == uid {
				return
			}
		case <-late:
			t.Fatalf("no change of %s was announced", uid)
		}
	}
}
