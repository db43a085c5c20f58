package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/hallmark-ca/hallmark/cmd/internal/serve"
)

func serveCommand() *cobra.Command {
	var p place
	var check bool
	var output string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the certificate authority",
		Long: `Run the certificate authority until SIGTERM or SIGINT. Logs are JSON lines on
standard error.

With --check, nothing is served: the configuration is validated, what it depends
on is probed (Kubernetes API and permissions, state directory, keys, policies,
addresses), every problem is listed with what mends it, and the exit code is 1 if
there is any. A server that runs on the same state does not mind.`,
		Example: `  hallmark serve --state /var/lib/hallmark
  hallmark serve --config /etc/hallmark/hallmark.yaml --check
  hallmark serve --check -o json`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := p.load(cmd)
			if err != nil {
				return err
			}
			if !check {
				return serve.Run(cmd.Context(), cfg, thisBuild().Version, cmd.ErrOrStderr())
			}
			return printFindings(cmd.OutOrStdout(), output, serve.Check(cmd.Context(), cfg))
		},
	}
	p.addConfig(cmd)
	cmd.Flags().BoolVar(&check, "check", false, "validate and probe, serve nothing")
	addOutput(cmd, &output, "text", "json")
	return cmd
}

// marks are shown before the findings of a check.
var marks = map[string]string{"ok": "✓", "warning": "!", "wrong": "✗"}

func printFindings(w io.Writer, format string, findings []serve.Finding) error {
	wrong := slices.ContainsFunc(findings, func(f serve.Finding) bool { return f.State == "wrong" })
	if format == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		if err := enc.Encode(findings); err != nil {
			return err
		}
	} else {
		for _, f := range findings {
			text := fmt.Sprintf("%s %s: %s\n", marks[f.State], f.What, f.Text)
			if f.Mend != "" {
				text += "    mend: " + f.Mend + "\n"
			}
			if _, err := io.WriteString(w, text); err != nil {
				return err
			}
		}
	}
	if wrong {
		return errFound
	}
	return nil
}
