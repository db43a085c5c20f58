package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/ledger"
	"github.com/hallmark-ca/hallmark/cmd/internal/state"
)

func ledgerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ledger",
		Short: "Read the record of every issuance and refusal",
		Long: `Read the issuance ledger: every certificate that was issued, or may have been, and
every refusal of a caller that had proved who it is. All commands read the files
of the state directory, also beside a running server.`,
		Example: `  hallmark ledger query --pod shop/client-7d4f --since 1h
  hallmark ledger export --since 24h > ledger.jsonl
  hallmark ledger verify`,
	}
	group(cmd)
	cmd.AddCommand(ledgerQueryCommand(), ledgerExportCommand(), ledgerVerifyCommand())
	return cmd
}

type ledgerQuery struct {
	place
	output       string
	filter       ledger.Filter
	since, until string
	limit        int
	authority    string
	expiring     time.Duration
}

func ledgerQueryCommand() *cobra.Command {
	var q ledgerQuery
	cmd := &cobra.Command{
		Use:   "query",
		Short: "Show issuances and refusals",
		Long: `Show issuances in the order in which they happened, then refusals likewise. All
filters that are given must match.

Status is issued, abandoned (the caller left before the signature), failed,
may-have-been-issued (intended, and the outcome is not on record), or refused.
-o json prints one JSON object a line.`,
		Example: `  hallmark ledger query --identity spiffe://cluster.local/ns/shop/sa/client
  hallmark ledger query --pod shop/client --since 24h -o json
  hallmark ledger query --serial 3f0c91d2a4… --state /var/lib/hallmark
  hallmark ledger query --image sha256:9b1c… --since 2026-01-31T08:00:00Z
  hallmark ledger query --authority 3f0c91d2 --expiring 1h`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return q.run(cmd) },
	}
	addOutput(cmd, &q.output, "text", "json")
	q.addState(cmd)
	flags := cmd.Flags()
	flags.StringVar(&q.filter.Identity, "identity", "", "the whole SPIFFE ID")
	flags.StringVar(&q.filter.Pod, "pod", "", "NAMESPACE/NAME, or the pod's UID")
	flags.StringVar(&q.filter.Image, "image", "", "part of an image's name or digest")
	flags.StringVar(&q.filter.Serial, "serial", "", "serial number in hex; colons do not count")
	flags.StringVar(&q.filter.ID, "id", "", "id of a request, as it stands in answers and in the log")
	flags.StringVar(&q.authority, "authority", "", "key id in hex of the issuing CA or the root, or its first 8 characters")
	flags.DurationVar(&q.expiring, "expiring", 0, "certificates that are valid now, and end within this time")
	q.addSpan(cmd)
	flags.IntVar(&q.limit, "limit", 0, "show the newest N only; 0 shows all")
	return cmd
}

func (q *ledgerQuery) addSpan(cmd *cobra.Command) {
	cmd.Flags().StringVar(&q.since, "since", "", "from then on: a time (RFC 3339), a date, or how long ago (24h)")
	cmd.Flags().StringVar(&q.until, "until", "", "up to then, likewise")
}

func ledgerExportCommand() *cobra.Command {
	var q ledgerQuery
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Print everything as JSON lines",
		Long: `Print every issuance with its outcome, then every refusal, one JSON object a line: for
an archive, or for a system that keeps audit records. The fields are those of
hallmark ledger query -o json.

An outcome follows its issuance within seconds, and a refusal is written once a
minute. An export that goes on where the last one ended therefore begins two minutes
earlier (--since); number and id tell what is there already.`,
		Example: `  hallmark ledger export > ledger.jsonl
  hallmark ledger export --since 2026-01-31 --until 2026-02-01 | gzip > 2026-01-31.jsonl.gz`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return q.run(cmd) },
	}
	addOutput(cmd, &q.output, "json")
	q.addState(cmd)
	q.addSpan(cmd)
	return cmd
}

// shortest is how much of a key id names one.
const shortest = 8

// check reads the flags that are not texts to compare.
func (q *ledgerQuery) check(cmd *cobra.Command, now time.Time) error {
	var err error
	if q.filter.Since, err = moment("since", q.since, now); err != nil {
		return err
	}
	if q.filter.Until, err = moment("until", q.until, now); err != nil {
		return err
	}
	q.authority = strings.ToLower(strings.ReplaceAll(q.authority, ":", ""))
	switch {
	case q.limit < 0:
		return usageError{fmt.Errorf("--limit %d is negative", q.limit)}
	case q.authority != "" && (len(q.authority) < shortest || strings.Trim(q.authority, "0123456789abcdef") != ""):
		return usageError{fmt.Errorf("--authority %q is no key id: write at least %d characters of it, in hex", q.authority, shortest)}
	case cmd.Flags().Changed("expiring") && q.expiring <= 0:
		return usageError{fmt.Errorf("--expiring %s: write how far ahead, such as 1h", q.expiring)}
	}
	return nil
}

// wanted holds an entry against the filters that the ledger has no index for. A
// refusal has neither authority nor end.
func (q *ledgerQuery) wanted(e ledger.Entry, now time.Time) bool {
	if q.authority == "" && q.expiring == 0 {
		return true
	}
	i := e.Intent
	if i == nil {
		return false
	}
	if q.authority != "" && !strings.HasPrefix(i.Authority, q.authority) && !strings.HasPrefix(i.Root, q.authority) {
		return false
	}
	if q.expiring == 0 {
		return true
	}
	exists := e.Status == ledger.Issued || e.Status == ledger.MaybeIssued
	return exists && i.NotAfter.After(now) && !i.NotAfter.After(now.Add(q.expiring))
}

func (q *ledgerQuery) run(cmd *cobra.Command) error {
	now := time.Now()
	if err := q.check(cmd, now); err != nil {
		return err
	}
	q.filter.Serial = strings.ToLower(strings.ReplaceAll(q.filter.Serial, ":", ""))
	dir, err := q.dir()
	if err != nil {
		return err
	}
	if _, err := dir.Verifier(); err != nil { // a wrong --state is not an empty ledger
		return err
	}
	print := entryPrinter(cmd.OutOrStdout(), q.output)
	var kept []ledger.Entry
	var damage error // what can be read is shown all the same
	for entry, err := range ledger.Query(cmd.Context(), dir.FS(), state.Ledger, q.filter) {
		if err != nil {
			damage = err
			break
		}
		if !q.wanted(entry, now) {
			continue
		}
		if q.limit == 0 {
			if err := print.entry(entry); err != nil {
				return err
			}
			continue
		}
		if kept = append(kept, entry); len(kept) > q.limit {
			kept = kept[1:]
		}
	}
	for _, entry := range kept {
		if err := print.entry(entry); err != nil {
			return err
		}
	}
	if damage != nil && print.rows == 0 {
		return damage // "nothing matches" is not known
	}
	return errors.Join(print.flush(), damage)
}

func (p *place) dir() (state.Dir, error) {
	dir, err := filepath.Abs(p.state)
	if err != nil {
		return "", fmt.Errorf("finding state directory: %w", err)
	}
	return state.Dir(dir), nil
}

// moment reads a time, a date or an age. Empty is the zero time.
func moment(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if age, err := time.ParseDuration(text); err == nil && age >= 0 {
		return now.Add(-age), nil
	}
	for _, layout := range []string{time.RFC3339Nano, time.DateTime, time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usageError{fmt.Errorf("--%s %q is no time: write 2026-01-31T08:00:00Z, 2026-01-31, or 24h for how long ago", flag, text)}
}

// printer prints entries of the ledger one by one, so that a long answer needs
// no memory.
type printer struct {
	json  *json.Encoder
	table *tabwriter.Writer
	rows  int
}

// tableFlush is after how many rows columns are aligned anew.
const tableFlush = 1000

func entryPrinter(w io.Writer, format string) *printer {
	if format == "json" {
		return &printer{json: json.NewEncoder(w)}
	}
	return &printer{table: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
}

func (p *printer) entry(e ledger.Entry) error {
	if p.json != nil {
		return p.json.Encode(e)
	}
	if p.rows == 0 {
		fmt.Fprintln(p.table, "TIME\tSTATUS\tIDENTITY\tPOD\tID\tSERIAL OR REASON")
	}
	p.rows++
	at := e.Time().Local().Format(time.DateTime)
	if r := e.Refusal; r != nil {
		fmt.Fprintf(p.table, "%s\t%s\t%s\t%s\t%s\t%s\n", at, e.Status, r.Identity, podName(r.Namespace, r.Pod), r.ID, why(r))
	} else {
		i := e.Intent
		fmt.Fprintf(p.table, "%s\t%s\t%s\t%s\t%s\t%s\n", at, e.Status, named(i), podName(i.Namespace, i.Pod), i.ID, i.Serial+remarks(i))
	}
	if p.rows%tableFlush == 0 {
		return p.table.Flush()
	}
	return nil
}

func (p *printer) flush() error {
	if p.json != nil {
		return nil
	}
	if p.rows == 0 {
		fmt.Fprintln(p.table, "nothing matches")
	}
	return p.table.Flush()
}

func why(r *ledger.Refusal) string {
	text := r.Reason
	if r.Object != "" {
		text += ": " + r.Object
	}
	if r.Count > 1 {
		text += fmt.Sprintf(" (%d times)", r.Count)
	}
	return text
}

// named shortens the list of names of a certificate of our own.
func named(i *ledger.Intent) string {
	first, rest, more := strings.Cut(i.Identity, ",")
	if !more {
		return i.Identity
	}
	return fmt.Sprintf("%s and %d more names", first, 1+strings.Count(rest, ","))
}

// remarks says which images the gate would have refused.
func remarks(i *ledger.Intent) string {
	text := ""
	for _, image := range i.Images {
		if image.Verdict == attest.VerdictWouldDeny.String() {
			text += fmt.Sprintf(", would-deny %s: %s", image.Reason, image.Image)
		}
	}
	return text
}

func podName(namespace, pod string) string {
	if pod == "" {
		return "-"
	}
	return namespace + "/" + pod
}

func ledgerVerifyCommand() *cobra.Command {
	var p place
	var output string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check the whole ledger",
		Long: `Check everything that the ledger promises and its files can show: the frames, the
chain of hashes over all records, the seams between segments, the signed
checkpoints, and that no outcome lacks its intent. Ends with 1 if anything was
found.`,
		Example: `  hallmark ledger verify
  hallmark ledger verify --state /var/lib/hallmark -o json`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := p.dir()
			if err != nil {
				return err
			}
			verifier, err := dir.Verifier()
			if err != nil {
				return err
			}
			report, err := ledger.Verify(cmd.Context(), dir.FS(), state.Ledger, verifier)
			if err != nil {
				return err
			}
			if err := printReport(cmd.OutOrStdout(), output, report); err != nil {
				return err
			}
			if len(report.Findings) > 0 {
				return errFound
			}
			return nil
		},
	}
	addOutput(cmd, &output, "text", "json")
	p.addState(cmd)
	return cmd
}

func printReport(w io.Writer, format string, r ledger.Report) error {
	if format == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	}
	verdict := "ok"
	if n := len(r.Findings); n > 0 {
		verdict = fmt.Sprintf("%d found wrong", n)
	}
	fmt.Fprintf(w, `ledger        %s: %s
records       %d since it began, in %d segments here
issuances     %d issued, %d may have been issued, of %d intents here
checkpoints   %d signed
chain         %s
`, r.Ledger, verdict, r.Records, r.Segments, r.Issued, r.Open, r.Intents, r.Checkpoints, r.Head)
	for _, note := range r.Notes {
		fmt.Fprintln(w, "note          "+note)
	}
	for _, finding := range r.Findings {
		fmt.Fprintln(w, "FOUND         "+finding)
	}
	return nil
}
