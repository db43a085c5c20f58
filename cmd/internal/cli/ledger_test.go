package cli_test

import (
	"bufio"
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hallmark-ca/hallmark/ca/ledger"
	"github.com/hallmark-ca/hallmark/cmd/internal/state"
)

// issuances fills the ledger of dir: intents with their outcomes, "" for none,
// and one refusal.
func issuances(t *testing.T, dir string, intents []*ledger.Intent, outcomes []string) {
	t.Helper()
	signer, err := state.Dir(dir).Signer()
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := state.Dir(dir).Verifier()
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(t.Context(), ledger.Config{
		FS: state.Dir(dir).FS(), Dir: state.Ledger, MaxBytes: 1 << 30, Retention: 24 * time.Hour, MaxLeaf: time.Hour,
		Signer: signer, Verifier: verifier, Registerer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	for i, intent := range intents {
		if err := l.Append(ctx, intent); err != nil {
			t.Fatal(err)
		}
		if outcomes[i] != "" {
			l.Finish(ledger.Outcome{ID: intent.ID, Time: intent.Time, Serial: intent.Serial, Status: outcomes[i]})
		}
	}
	l.Refuse(ledger.Refusal{ID: "refused", Time: time.Now(), Last: time.Now(), Count: 1, Identity: "spiffe://example.org/ns/shop/sa/other", Reason: "PodGone"})
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// ids returns those of the entries that a command prints as JSON lines.
func ids(t *testing.T, args ...string) []string {
	t.Helper()
	code, out, errs := hallmark(args...)
	if code != 0 {
		t.Fatalf("%s: exit code %d: %s", strings.Join(args, " "), code, errs)
	}
	found := []string{}
	for lines := bufio.NewScanner(strings.NewReader(out)); lines.Scan(); {
		var e ledger.Entry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("%v: %s", err, lines.Text())
		}
		if e.Refusal != nil {
			found = append(found, e.Refusal.ID)
			continue
		}
		found = append(found, e.Intent.ID)
	}
	return found
}

func TestLedgerFiltersAndExport(t *testing.T) {
	t.Parallel()
	dir, _ := found(t)
	start := time.Now().UTC()
	const issuer, other = "00112233445566778899aabbccddeeff00112233", "ffee2233445566778899aabbccddeeff00112233"
	intent := func(id, authority, root string, at, end time.Duration) *ledger.Intent {
		return &ledger.Intent{
			ID: id, Serial: "0" + id, Identity: "spiffe://example.org/ns/shop/sa/client", Authority: authority, Root: root, Door: "sds",
			Time: start.Add(at), NotBefore: start.Add(at), NotAfter: start.Add(end),
		}
	}
	issuances(t, dir, []*ledger.Intent{
		intent("over", issuer, oldRoot, -3*time.Hour, -time.Hour),
		intent("soon", issuer, oldRoot, -2*time.Hour, 30*time.Minute),
		intent("perhaps", issuer, newRoot, -2*time.Hour, 31*time.Minute),
		intent("never", issuer, newRoot, -time.Hour, 32*time.Minute),
		intent("late", other, newRoot, -time.Hour, 9*time.Hour),
	}, []string{ledger.Issued, ledger.Issued, "", ledger.Failed, ledger.Issued})

	all := []string{"over", "soon", "perhaps", "never", "late", "refused"}
	for _, c := range []struct {
		args string
		want []string
	}{
		{"query", all},
		{"query --authority 00112233", all[:4]},
		{"query --authority 00:11:22:33", all[:4]},
		{"query --authority " + strings.ToUpper(newRoot), []string{"perhaps", "never", "late"}},
		{"query --authority 00112233 --expiring 1h", []string{"soon", "perhaps"}},
		{"query --expiring 24h", []string{"soon", "perhaps", "late"}},
		{"query --expiring 24h --limit 1", []string{"late"}},
		{"query --authority 44444444", []string{}},
		{"export", all},
		{"export --since 90m", []string{"never", "late", "refused"}},
		{"export --until 90m", []string{"over", "soon", "perhaps"}},
	} {
		args := slices.Concat([]string{"ledger"}, strings.Fields(c.args), []string{"--state", dir, "-o", "json"})
		if diff := cmp.Diff(c.want, ids(t, args...)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.args, diff)
		}
	}
}
