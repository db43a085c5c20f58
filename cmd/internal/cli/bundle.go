package cli

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/cmd/internal/state"
)

func bundleCommand() *cobra.Command {
	var p place
	var output string
	cmd := &cobra.Command{
		Use:   "bundle",
		Short: "Print the trusted roots",
		Long: `Print the roots that are trusted now, from the journal of the state directory,
after the journal was verified: what the bundle file holds, for clients that need
it elsewhere. It reads the files, also beside a running server.`,
		Example: `  hallmark bundle > bundle.pem
  hallmark bundle --state /var/lib/hallmark -o json`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := p.dir()
			if err != nil {
				return err
			}
			current, err := journal.ReadFile(dir.FS(), state.Journal)
			if errors.Is(err, journal.ErrNoJournal) {
				return fmt.Errorf("%s: %w, or name the state directory with --state", dir, err)
			}
			if err != nil {
				return fmt.Errorf("%s: %w: put back the newest copy of the state directory", dir, err)
			}
			roots, err := current.Certificates()
			if err != nil {
				return err
			}
			return printBundle(cmd.OutOrStdout(), output, &current, roots)
		},
	}
	addOutput(cmd, &output, "pem", "json")
	p.addState(cmd)
	return cmd
}

type shownBundle struct {
	TrustDomain string      `json:"trustDomain"`
	Sequence    uint64      `json:"sequence"`
	Roots       []shownRoot `json:"roots"`
}

type shownRoot struct {
	ID        string    `json:"id"`
	Subject   string    `json:"subject"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	PEM       string    `json:"pem"`
}

func printBundle(w io.Writer, format string, current *journal.State, roots []*x509.Certificate) error {
	shown := shownBundle{TrustDomain: current.TrustDomain, Sequence: current.Sequence}
	for _, root := range roots {
		block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})
		if format == "pem" {
			if _, err := w.Write(block); err != nil {
				return err
			}
			continue
		}
		shown.Roots = append(shown.Roots, shownRoot{fmt.Sprintf("%x", root.SubjectKeyId), root.Subject.String(), root.NotBefore, root.NotAfter, string(block)})
	}
	if format == "pem" {
		return nil
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(shown)
}
