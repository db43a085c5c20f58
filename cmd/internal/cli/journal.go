package cli

import (
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallmark-ca/hallmark/ca/durable"
	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/cmd/internal/state"
)

func journalCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "journal",
		Short: "Read the record of every change of the authority",
		Long: `Read the journal: every change of roots and issuing CAs, who asked for it, and which
gates were passed. The records are chained by their hashes and signed by the active
root. Both commands read the files of the state directory, also beside a running
server. No private key is in it.`,
		Example: `  hallmark journal show
  hallmark journal verify`,
	}
	group(cmd)
	cmd.AddCommand(journalShowCommand(), journalVerifyCommand())
	return cmd
}

// shownRecord is a record as -o json prints it.
type shownRecord struct {
	Number uint64          `json:"number"`
	Time   time.Time       `json:"time"`
	By     string          `json:"by"`
	What   string          `json:"what"`
	Hash   string          `json:"hash"`
	Signed []string        `json:"signedBy"` // ids of roots; verify says whether it is so
	Body   json.RawMessage `json:"body"`
}

func journalShowCommand() *cobra.Command {
	var p place
	var output string
	var limit int
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show each record: when, who, what",
		Long: `Show the records of the journal, the oldest first: number, time, who asked, and what
happened. A gate that was passed by force is shown with its reason, and with how
many were behind; -o json has their names, and prints one record a line.

The journal is verified too. If it does not verify, all records are shown as they
stand there, what is wrong is said, and the exit code is 1.`,
		Example: `  hallmark journal show
  hallmark journal show --limit 10
  hallmark journal show -o json | jq 'select(.body.step.passed)'`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 0 {
				return usageError{fmt.Errorf("--limit %d is negative", limit)}
			}
			records, err := p.records()
			if err != nil {
				return err
			}
			_, wrong := journal.Replay(records)
			if limit > 0 && len(records) > limit {
				records = records[len(records)-limit:]
			}
			if err := printRecords(cmd.OutOrStdout(), output, records); err != nil {
				return err
			}
			if wrong != nil {
				return fmt.Errorf("the journal does not verify: %s", printable(wrong.Error()))
			}
			return nil
		},
	}
	addOutput(cmd, &output, "text", "json")
	p.addState(cmd)
	cmd.Flags().IntVar(&limit, "limit", 0, "show the newest N only; 0 shows all")
	return cmd
}

// records reads the journal as it stands there.
func (p *place) records() ([]journal.Record, error) {
	dir, err := p.dir()
	if err != nil {
		return nil, err
	}
	records, err := journal.ReadRecords(dir.FS(), state.Journal)
	if errors.Is(err, journal.ErrNoJournal) {
		err = fmt.Errorf("%w, or name the state directory with --state", err)
	}
	return records, err
}

func printRecords(w io.Writer, format string, records []journal.Record) error {
	enc := json.NewEncoder(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if format == "text" {
		fmt.Fprintln(table, "NUMBER\tTIME\tBY\tWHAT")
	}
	for _, rec := range records {
		var b journal.Body
		if err := json.Unmarshal(rec.Body, &b); err != nil {
			return fmt.Errorf("reading journal record: %w", err)
		}
		if format == "text" {
			fmt.Fprintf(table, "%d\t%s\t%s\t%s\n", b.Number, b.Time.UTC().Format("2006-01-02 15:04:05Z"), printable(b.By), printable(happened(&b)))
			continue
		}
		sum := sha256.Sum256(rec.Body)
		shown := shownRecord{b.Number, b.Time, b.By, happened(&b), hex.EncodeToString(sum[:]), []string{}, rec.Body}
		for _, s := range rec.Signatures {
			shown.Signed = append(shown.Signed, s.Root)
		}
		if err := enc.Encode(shown); err != nil {
			return err
		}
	}
	return table.Flush()
}

// happened says what a record says.
func happened(b *journal.Body) string {
	switch {
	case b.Founded != nil:
		return fmt.Sprintf("founded trust domain %s with root %s%s", b.TrustDomain, shortID(b.Founded.ID), named509(b.Founded.Certificate))
	case b.Added != nil && b.Added.Phase == journal.Trusted:
		return fmt.Sprintf("root %s is trusted, and not ours to sign with%s", shortID(b.Added.ID), named509(b.Added.Certificate))
	case b.Added != nil:
		return fmt.Sprintf("root %s is %s%s", shortID(b.Added.ID), b.Added.Phase, named509(b.Added.Certificate))
	case b.Step != nil:
		return fmt.Sprintf("root %s is %s%s", shortID(b.Step.Root), b.Step.To, passedText(b.Step.Passed))
	case b.Issuing != nil:
		use := ""
		if b.Issuing.Serving {
			use = ", for our own certificate alone"
		}
		return fmt.Sprintf("issuing CA %s of replica %s under root %s, until %s%s", shortID(b.Issuing.ID), b.Issuing.Replica, shortID(b.Issuing.Root), at(b.Issuing.NotAfter), use)
	case b.Taint != nil:
		return fmt.Sprintf("issuing CA %s must not be used any more: %s", shortID(b.Taint.Issuing), b.Taint.Reason)
	case b.Course != nil && *b.Course == journal.Paused:
		return "the rotation is paused"
	case b.Course != nil:
		return "the rotation goes on " + cmp.Or(courses[*b.Course], string(*b.Course))
	case b.Destroyed != nil:
		return fmt.Sprintf("the key of root %s was destroyed", shortID(*b.Destroyed))
	case b.Folded != nil:
		return fmt.Sprintf("folded: %d roots, %d issuing CAs, bundle sequence %d; the records before are gone", len(b.Folded.Roots), len(b.Folded.Issuing), b.Folded.Sequence)
	}
	return "(nothing that this release knows)"
}

func named509(der []byte) string {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return ", with a certificate that is not read"
	}
	return fmt.Sprintf(" (%s, until %s)", cert.Subject, cert.NotAfter.UTC().Format(time.DateOnly))
}

func passedText(p *journal.Passed) string {
	switch {
	case p == nil:
		return ""
	case p.Reason == "":
		return fmt.Sprintf("; %d consumers were set aside", p.Count)
	}
	text := fmt.Sprintf("; the gate was FORCED, %d behind: %s", p.Count, p.Reason)
	if len(p.Behind) > 0 {
		text += " (" + p.Behind[0]
		if p.Count > 1 {
			text += ", …"
		}
		text += ")"
	}
	return text
}

// journalReport is what verify found.
type journalReport struct {
	TrustDomain string    `json:"trustDomain,omitempty"`
	Records     int       `json:"records"` // in the file
	First       uint64    `json:"first"`   // number of the first of them
	Last        uint64    `json:"last"`
	Since       time.Time `json:"since"` // of the first
	Head        string    `json:"head,omitempty"`
	Sequence    uint64    `json:"sequence"`
	Roots       int       `json:"roots"`
	Notes       []string  `json:"notes,omitempty"`
	Findings    []string  `json:"findings,omitempty"`
}

func journalVerifyCommand() *cobra.Command {
	var p place
	var output string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check the whole journal",
		Long: `Check everything that the journal promises: the numbers without gaps, the chain of
hashes, the signatures of the roots on each record, that each step was one that a
root may take, and that the journal continues the newest record that this replica
has seen (journal.seen): one that was rolled back is found. Ends with 1 if anything
was found. Nothing is changed.`,
		Example: `  hallmark journal verify
  hallmark journal verify --state /mnt/backup/hallmark -o json`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := p.dir()
			if err != nil {
				return err
			}
			// The memo first: a running server may add to both meanwhile, and the
			// journal must then be the newer.
			memo, memoErr := readMemo(dir.FS())
			records, err := p.records()
			if err != nil {
				return err
			}
			report := verifyJournal(records, memo, memoErr)
			if output == "json" {
				err = writeJSON(cmd.OutOrStdout(), report)
			} else {
				err = report.write(cmd.OutOrStdout())
			}
			if err == nil && len(report.Findings) > 0 {
				err = errFound
			}
			return err
		},
	}
	addOutput(cmd, &output, "text", "json")
	p.addState(cmd)
	return cmd
}

// readMemo reads the newest state that the server has seen, and leaves it as it
// is.
func readMemo(fsys durable.FS) (journal.Memo, error) {
	var memo journal.Memo
	data, err := durable.Read(fsys, state.Seen, 4096)
	if err == nil {
		err = json.Unmarshal(data, &memo)
	}
	return memo, err
}

func verifyJournal(records []journal.Record, memo journal.Memo, memoErr error) journalReport {
	r := journalReport{Records: len(records)}
	var first journal.Body
	if err := json.Unmarshal(records[0].Body, &first); err == nil {
		r.First, r.Since = first.Number, first.Time
		if first.Folded != nil {
			r.Notes = append(r.Notes, fmt.Sprintf("the records before %d were folded into it", first.Number))
		}
	}
	current, err := journal.Replay(records)
	if err != nil {
		r.Findings = append(r.Findings, err.Error())
		return r
	}
	r.TrustDomain, r.Last, r.Head, r.Sequence, r.Roots = current.TrustDomain, current.Number, current.Head, current.Sequence, len(current.Roots)
	switch {
	case errors.Is(memoErr, fs.ErrNotExist):
		r.Notes = append(r.Notes, "no server has run on this state yet, or journal.seen was not copied: a rollback would not be seen")
	case memoErr != nil:
		r.Findings = append(r.Findings, "journal.seen cannot be read: "+memoErr.Error())
	case !current.Extends(memo.Number, memo.Head) || current.Sequence < memo.Sequence:
		r.Findings = append(r.Findings, fmt.Sprintf("it does not continue what was seen here before: record %d, bundle sequence %d. It was rolled back, or replaced", memo.Number, memo.Sequence))
	}
	return r
}

func (r *journalReport) write(w io.Writer) error {
	verdict := "ok"
	if n := len(r.Findings); n > 0 {
		verdict = fmt.Sprintf("%d found wrong", n)
	}
	var b strings.Builder
	domain := ""
	if r.TrustDomain != "" {
		domain = "trust domain " + r.TrustDomain + ": "
	}
	fmt.Fprintf(&b, "%-14s%s%s\n", "journal", domain, verdict)
	fmt.Fprintf(&b, "%-14s%d here, since %s\n", "records", r.Records, at(r.Since))
	if r.Head != "" {
		fmt.Fprintf(&b, "%-14s%d, hash %s\n", "last", r.Last, r.Head)
		fmt.Fprintf(&b, "%-14s%d, bundle sequence %d\n", "roots", r.Roots, r.Sequence)
	}
	for _, note := range r.Notes {
		fmt.Fprintf(&b, "%-14s%s\n", "note", note)
	}
	for _, finding := range r.Findings {
		fmt.Fprintf(&b, "%-14s%s\n", "FOUND", printable(finding))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
