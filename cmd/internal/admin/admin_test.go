package admin_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/rotate"
	"github.com/hallmark-ca/hallmark/cmd/internal/admin"
	"github.com/hallmark-ca/hallmark/cmd/internal/admin/admintest"
)

func client(t *testing.T, socket string) *admin.Client {
	t.Helper()
	c, err := admin.NewClient(socket)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// raw is a client without manners.
func raw(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}
}

// send returns code and body of the answer.
func send(t *testing.T, socket, method, path, kind, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://hallmark"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := raw(socket).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got := resp.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("%s %s: answer of type %q", method, path, got)
	}
	return resp.StatusCode, string(text)
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func rootPEM(t *testing.T) string {
	t.Helper()
	cert := catest.Certify(t, ca.Root, attesttest.Domain(t, "other.example"), catest.Key(t), ca.Parent{}, catest.RootLifetime, admintest.Now)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
}

func TestStatus(t *testing.T) {
	t.Parallel()
	r := &admintest.Rotation{}
	r.Set(rotate.Status{At: admintest.Now, TrustDomain: "example.org", Phase: rotate.Idle, Sequence: 3}, nil, nil)
	usage := 0.25
	facts := admin.Facts{Version: "v1", Issuing: "abcd", LedgerUsage: &usage, More: []admin.Line{{Name: "places", Text: "2"}}}
	holds, not := admin.Condition{Name: "ledger", Ready: true}, admin.Condition{Name: "view", Text: "it is old"}
	s := admintest.Serve(t, t.TempDir(), r, facts, holds, not)
	got, err := client(t, s.Socket).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := admin.Status{At: admintest.Now, Facts: facts, Conditions: []admin.Condition{holds, not}}
	want.Rotation.Status = rotate.Status{At: admintest.Now, TrustDomain: "example.org", Phase: rotate.Idle, Sequence: 3}
	if diff := cmp.Diff(asJSON(t, want), asJSON(t, got)); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

// TestStatusOfBrokenJournal: what this process knows is told all the same.
func TestStatusOfBrokenJournal(t *testing.T) {
	t.Parallel()
	r := &admintest.Rotation{}
	r.Set(rotate.Status{Frozen: &rotate.Failure{Step: rotate.Activate, Error: "the disk"}}, errors.New("reading rotation status: input/output error"), nil)
	s := admintest.Serve(t, t.TempDir(), r, admin.Facts{})
	got, err := client(t, s.Socket).Rotation(t.Context())
	if err != nil || got.Frozen == nil || got.Error != "reading rotation status: input/output error" {
		t.Errorf("rotation = %+v, %v", got, err)
	}
}

func TestCommands(t *testing.T) {
	t.Parallel()
	r := &admintest.Rotation{}
	r.Set(rotate.Status{Phase: rotate.Published}, nil, nil)
	s := admintest.Serve(t, t.TempDir(), r, admin.Facts{})
	c := client(t, s.Socket)
	force := &admin.Force{Reason: "the node is gone"}
	orders := []struct {
		action admin.Action
		order  admin.Order
		want   string
	}{
		{admin.Start, admin.Order{}, `start by WHO`},
		{admin.Activate, admin.Order{}, `activate by WHO, force false ""`},
		{admin.Activate, admin.Order{Force: force}, `activate by WHO, force true "the node is gone"`},
		{admin.Activate, admin.Order{Force: &admin.Force{}}, `activate by WHO, force true ""`},
		{admin.Retire, admin.Order{}, `retire "" by WHO, force false ""`},
		{admin.Retire, admin.Order{Root: "ab12", Force: force}, `retire "ab12" by WHO, force true "the node is gone"`},
		{admin.Untrust, admin.Order{Root: "ab12", Force: force}, `untrust "ab12" by WHO, force true "the node is gone"`},
		{admin.Abort, admin.Order{}, `abort by WHO`},
		{admin.Pause, admin.Order{}, `pause by WHO`},
		{admin.Resume, admin.Order{}, `resume by WHO`},
		{admin.Run, admin.Order{}, `run by WHO`},
	}
	var want []string
	for _, o := range orders {
		status, err := c.Do(t.Context(), o.action, o.order)
		if err != nil || status.Phase != rotate.Published {
			t.Errorf("%s: %+v, %v", o.action, status, err)
		}
		want = append(want, strings.ReplaceAll(o.want, "WHO", me()))
	}
	if diff := cmp.Diff(want, r.Calls()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	text := rootPEM(t)
	if _, err := c.Do(t.Context(), admin.Trust, admin.Order{Certificate: text}); err != nil {
		t.Error(err)
	}
	block, _ := pem.Decode([]byte(text))
	if got, want := r.Calls()[len(orders)], fmt.Sprintf("trust %d bytes by %s", len(block.Bytes), me()); got != want {
		t.Errorf("trust: %q, want %q", got, want)
	}
}

// TestRefusals: what the rotation refuses comes through with its mend; what
// nobody foresaw stays in the log.
func TestRefusals(t *testing.T) {
	t.Parallel()
	r := &admintest.Rotation{}
	s := admintest.Serve(t, t.TempDir(), r, admin.Facts{})
	c := client(t, s.Socket)

	r.Set(rotate.Status{}, nil, &rotate.RefusedError{Why: "gate A is shut", Mend: "wait", Err: errors.New("secret of the disk")})
	_, err := c.Do(t.Context(), admin.Activate, admin.Order{})
	var refused *rotate.RefusedError
	if !errors.As(err, &refused) || refused.Why != "gate A is shut" || refused.Mend != "wait" {
		t.Errorf("refusal = %v", err)
	}
	if code, body := send(t, s.Socket, "POST", "/v1/rotation/activate", "application/json", "{}"); code != http.StatusConflict || strings.Contains(body, "disk") {
		t.Errorf("refusal = %d %s", code, body)
	}

	r.Set(rotate.Status{}, nil, errors.New("writing /secret/path: no space"))
	code, body := send(t, s.Socket, "POST", "/v1/rotation/start", "application/json", "{}")
	if code != http.StatusInternalServerError || strings.Contains(body, "secret") {
		t.Errorf("failure = %d %s", code, body)
	}
	var f struct{ Why, Mend, ID string }
	if err := json.Unmarshal([]byte(body), &f); err != nil || f.ID == "" || !strings.Contains(s.Log.String(), f.ID) || !strings.Contains(s.Log.String(), "/secret/path") {
		t.Errorf("the log does not explain %s:\n%s", body, s.Log)
	}
}

// TestHostileBodies: nothing that is not understood to the last byte is a step.
func TestHostileBodies(t *testing.T) {
	t.Parallel()
	r := &admintest.Rotation{}
	s := admintest.Serve(t, t.TempDir(), r, admin.Facts{})
	const kind = "application/json"
	for name, c := range map[string]struct {
		path, kind, body string
		code             int
	}{
		"no type":             {"start", "", "{}", 400},
		"a form":              {"start", "application/x-www-form-urlencoded", "{}", 400},
		"nothing":             {"start", kind, "", 400},
		"null":                {"start", kind, "null", 400},
		"a list":              {"start", kind, "[{}]", 400},
		"cut":                 {"retire", kind, `{"root":"ab`, 400},
		"two values":          {"start", kind, "{}{}", 400},
		"unknown key":         {"retire", kind, `{"roof":"ab12"}`, 400},
		"other case":          {"retire", kind, `{"Root":"ab12"}`, 400},
		"said twice":          {"retire", kind, `{"root":"ab12","root":"cd34"}`, 400},
		"unknown key, within": {"activate", kind, `{"force":{"reason":"x","yes":true}}`, 400},
		"wrong kind":          {"activate", kind, `{"force":true}`, 400},
		"root of no use":      {"activate", kind, `{"root":"ab12"}`, 400},
		"force of no use":     {"abort", kind, `{"force":{"reason":"x"}}`, 400},
		"certificate unasked": {"run", kind, `{"certificate":"x"}`, 400},
		"no certificate":      {"trust", kind, `{}`, 400},
		"no PEM":              {"trust", kind, `{"certificate":"hello"}`, 400},
		"a key":               {"trust", kind, `{"certificate":"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"}`, 400},
		"two certificates":    {"trust", kind, fmt.Sprintf(`{"certificate":%q}`, strings.Repeat("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 2)), 400},
		"too large":           {"trust", kind, fmt.Sprintf(`{"certificate":%q}`, strings.Repeat("A", admin.MaxBody)), 413},
		"deep":                {"retire", kind, `{"root":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + `}`, 400},
		"unknown command":     {"destroy", kind, "{}", 404},
		"below a command":     {"start/now", kind, "{}", 404},
	} {
		code, body := send(t, s.Socket, "POST", "/v1/rotation/"+c.path, c.kind, c.body)
		if code != c.code || !strings.Contains(body, `"why":"`) {
			t.Errorf("%s: %d %s, want %d", name, code, body, c.code)
		}
	}
	for _, method := range []string{"GET", "PUT", "DELETE", "HEAD"} {
		if code, _ := send(t, s.Socket, method, "/v1/rotation/start", "", ""); code != http.StatusNotFound {
			t.Errorf("%s of a command: %d", method, code)
		}
	}
	for _, path := range []string{"/v1/status", "/v1/rotation"} {
		if code, _ := send(t, s.Socket, "GET", path, kind, "{}"); code != http.StatusBadRequest {
			t.Errorf("GET %s with a body: %d", path, code)
		}
		if code, _ := send(t, s.Socket, "POST", path, kind, "{}"); code != http.StatusNotFound {
			t.Errorf("POST %s: %d", path, code)
		}
	}
	if calls := r.Calls(); len(calls) > 0 {
		t.Errorf("steps were taken: %q", calls)
	}
}

// TestBounds: headers, and how many are worked on at once.
func TestBounds(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	r := &admintest.Rotation{Hold: hold}
	s := admintest.Serve(t, t.TempDir(), r, admin.Facts{})

	req, err := http.NewRequest(http.MethodGet, "http://hallmark/v1/status", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Long", strings.Repeat("x", 64<<10))
	if resp, err := raw(s.Socket).Do(req); err == nil {
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("a header of 64 KiB: %s", resp.Status)
		}
	}

	c := client(t, s.Socket)
	const extra = 3
	outcome := make(chan error, admin.MaxRequests+extra)
	for range admin.MaxRequests + extra {
		go func() {
			_, err := c.Do(t.Context(), admin.Pause, admin.Order{})
			outcome <- err
		}()
	}
	for range extra { // they are refused while the others wait
		if err := <-outcome; err == nil || !strings.Contains(err.Error(), "try again") {
			t.Errorf("one more than fit: %v", err)
		}
	}
	close(hold)
	for range admin.MaxRequests {
		if err := <-outcome; err != nil {
			t.Errorf("one that fits: %v", err)
		}
	}
}

// TestStepOutlivesClient: whoever has asked and gone has not cut the step.
func TestStepOutlivesClient(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	r := &admintest.Rotation{Hold: hold}
	s := admintest.Serve(t, t.TempDir(), r, admin.Facts{})
	conn, err := net.Dial("unix", s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(conn, "POST /v1/rotation/start HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
	if _, err := conn.Read(make([]byte, 12)); err != nil { // it is being worked on
		t.Fatal(err)
	}
	fmt.Fprint(conn, "{}")
	conn.Close()
	close(hold)
	await(t, "the step", func() bool { return slices.Equal(r.Calls(), []string{"start by " + me()}) })
}

// TestStop: a step that does not end is cut with the server, which then ends.
func TestStop(t *testing.T) {
	t.Parallel()
	r := &admintest.Rotation{Hold: make(chan struct{})}
	s := admintest.Serve(t, t.TempDir(), r, admin.Facts{})
	failed := make(chan error, 1)
	go func() {
		_, err := client(t, s.Socket).Do(context.Background(), admin.Start, admin.Order{})
		failed <- err
	}()
	await(t, "the request", func() bool { return r.Waiting() == 1 })
	if err := s.Stop(t); err != nil {
		t.Errorf("Run = %v", err)
	}
	if err := <-failed; err == nil {
		t.Error("a step that was cut is reported as done")
	}
	if _, err := os.Lstat(s.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	limit := time.After(10 * time.Second)
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for !done() {
		select {
		case <-again.C:
		case <-limit:
			t.Fatalf("waiting for %s: it does not come", what)
		}
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	if _, err := admin.New(admin.Config{Socket: filepath.Join(t.TempDir(), admin.SocketName)}); err == nil {
		t.Error("a server of nothing was made")
	}
}
