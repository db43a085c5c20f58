package admin_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-ca/hallmark/cmd/internal/admin"
)

// FuzzOrder: a body is refused, or means what it says: written anew, it is read
// as the same order.
func FuzzOrder(f *testing.F) {
	for _, seed := range []string{`{}`, `null`, `{"root":"ab12","force":{"reason":"x"}}`, `{"certificate":"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}`, `{"Root":"x"}`, `{"root":1}`, `{}{}`} {
		f.Add([]byte(seed))
	}
	order := func(body []byte) (*admin.Order, error) {
		r := httptest.NewRequest(http.MethodPost, "/v1/rotation/start", bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		return admin.Read(r)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		first, err := order(body)
		if err != nil {
			return
		}
		if _, err := admin.ParseCertificate([]byte(first.Certificate)); err == nil && first.Certificate == "" {
			t.Error("nothing is read as a certificate")
		}
		text, err := json.Marshal(first)
		if err != nil {
			t.Fatal(err)
		}
		again, err := order(text)
		if err != nil {
			t.Fatalf("%s is read, and %s is not: %v", body, text, err)
		}
		if diff := cmp.Diff(first, again); diff != "" {
			t.Errorf("%s and %s differ:\n%s", body, text, diff)
		}
	})
}
