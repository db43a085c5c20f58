package serve_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/cmd/internal/serve"
)

// A token in the shape of the real ones, of which no part may reach a log.
const token = "eyJhbGciOiJSUzI1NiIsImtpZCI6ImEifQ.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQifQ.c2lnbmF0dXJlLXNpZ25hdHVyZQ"

func TestLogHidesSecrets(t *testing.T) {
	t.Parallel()
	key := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("0123456789")}))
	var out bytes.Buffer
	log := serve.NewLog(&out)
	log.Info("a line", "text", "header Bearer "+token+" seen", "Authorization", "Bearer abc", "passphrase", "hunter22")
	log.With("token", "opaque-token").WithGroup("group").Error("another", "error", fmt.Errorf("calling with %s: %w", token, errors.New("no")), "key", key)
	log.Info("plain", "pod", "shop/client", "n", 3)
	for _, secret := range []string{token, strings.Split(token, ".")[1], "Bearer abc", "hunter22", "opaque-token", "MDEyMzQ1"} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("the log has %q:\n%s", secret, out.String())
		}
	}
	for _, kept := range []string{"a line", `"pod":"shop/client"`, `"n":3`, "calling with [hidden]: no"} {
		if !strings.Contains(out.String(), kept) {
			t.Errorf("the log lacks %q:\n%s", kept, out.String())
		}
	}
}

// recorder notes the order in which parts end.
type recorder struct {
	mu    sync.Mutex
	ended []string
}

func (r *recorder) unit(name string) serve.Unit {
	return serve.MakeUnit(name, func(ctx context.Context) error {
		<-ctx.Done()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ended = append(r.ended, name)
		return nil
	})
}

func TestStopsDoorsFirstAndTheLedgerLast(t *testing.T) {
	t.Parallel()
	var r recorder
	ctx, stop := context.WithCancel(context.Background())
	stop()
	err := serve.RunUnits(ctx, []serve.Unit{r.unit("door")}, []serve.Unit{r.unit("worker")}, []serve.Unit{r.unit("ledger")})
	if err != nil || !slices.Equal(r.ended, []string{"door", "worker", "ledger"}) {
		t.Errorf("err %v, ended in the order %v", err, r.ended)
	}
}

func TestAPartThatFailsStopsAllInOrder(t *testing.T) {
	t.Parallel()
	for _, failure := range []error{errors.New("broken"), nil} { // nil: it ended by itself
		var r recorder
		bad := serve.MakeUnit("bad", func(context.Context) error { return failure })
		err := serve.RunUnits(context.Background(), []serve.Unit{r.unit("door")}, []serve.Unit{r.unit("worker"), bad}, []serve.Unit{r.unit("ledger")})
		if err == nil || !strings.Contains(err.Error(), "running bad: ") {
			t.Errorf("err = %v, want the name of the part that failed", err)
		}
		if !slices.Equal(r.ended, []string{"door", "worker", "ledger"}) {
			t.Errorf("ended in the order %v", r.ended)
		}
	}
}

func TestReadinessNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	var missing error
	handler := serve.Admin(serve.Condition("ledger", func() error { return missing }), serve.Condition("issuing CA", func() error { return nil }))
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code, w.Body.String()
	}
	if code, body := get("/readyz"); code != 200 || body != "ok: ledger\nok: issuing CA\n" {
		t.Errorf("ready: %d %q", code, body)
	}
	missing = errors.New("the volume is full")
	if code, body := get("/readyz"); code != 503 || body != "not ready: ledger (hallmark status says why)\nok: issuing CA\n" {
		t.Errorf("not ready: %d %q", code, body)
	}
	// A restart would not bring the volume back, and would lose the issuing CA.
	if code, _ := get("/healthz"); code != 200 {
		t.Errorf("alive: %d", code)
	}
	if code, body := get("/metrics"); code != 200 || !strings.Contains(body, "promhttp_metric_handler_requests_total") {
		t.Errorf("metrics: %d", code)
	}
}

func TestServingCertificateRenewsItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		authority := catest.New(t, attesttest.Domain(t, "example.org"), time.Now, nil)
		s, err := serve.NewServing(authority.Authority, []string{"hallmark.example.org"}, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		if s.Ready() == nil {
			t.Error("ready before there is a certificate")
		}
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		<-s.First()
		synctest.Wait()
		first := s.Serial()
		// Half of six hours, and a little of jitter less.
		<-time.After(3*time.Hour + time.Second)
		synctest.Wait()
		second := s.Serial()
		if second == first || s.Ready() != nil {
			t.Errorf("not renewed at half of its life: %s then %s, %v", first, second, s.Ready())
		}
		authority.Renew(t)
		synctest.Wait()
		if s.Serial() == second {
			t.Error("not renewed under the new issuing CA")
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
