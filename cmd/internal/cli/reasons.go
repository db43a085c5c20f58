package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/hallmark-ca/hallmark/attest"
)

func reasonsCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "reasons [NAME...]",
		Short: "Explain the reasons of refusals",
		Long: `Explain why something is refused: each reason's name, kind, meaning, and what
mends it. The names are the same in answers, log, metrics and ledger.`,
		Example: `  hallmark reasons ImageUnsigned
  hallmark reasons -o json`,
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			var names []string
			for _, r := range attest.Reasons() {
				names = append(names, r.Name+"\t"+r.Meaning)
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, names []string) error {
			return WriteReasons(cmd.OutOrStdout(), output, names...)
		},
	}
	addOutput(cmd, &output, "text", "json", "markdown")
	return cmd
}

type reason struct {
	Name    string `json:"name"`
	Kind    string `json:"kind"`
	Meaning string `json:"meaning"`
	Mend    string `json:"mend"`
}

// WriteReasons writes the table of reasons, or those rows of it that are named.
// Format is text, json or markdown.
func WriteReasons(w io.Writer, format string, names ...string) error {
	rows, err := pickReasons(names)
	if err != nil {
		return err
	}
	switch format {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(rows)
	case "markdown":
		return writeReasonsMarkdown(w, rows)
	}
	if len(names) > 0 {
		for _, r := range rows {
			if _, err := fmt.Fprintf(w, "%s (%s)\n  %s\n  Mend: %s.\n", r.Name, r.Kind, r.Meaning, strings.TrimSuffix(r.Mend, ".")); err != nil {
				return err
			}
		}
		return nil
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "REASON\tKIND\tMEANING")
	for _, r := range rows {
		fmt.Fprintf(table, "%s\t%s\t%s\n", r.Name, r.Kind, r.Meaning)
	}
	return table.Flush()
}

func pickReasons(names []string) ([]reason, error) {
	all := attest.Reasons()
	rows := make([]reason, 0, len(all))
	byName := map[string]reason{}
	for _, r := range all {
		row := reason{r.Name, r.Kind.String(), r.Meaning, r.Mend}
		rows = append(rows, row)
		byName[strings.ToLower(r.Name)] = row
	}
	if len(names) == 0 {
		return rows, nil
	}
	rows = rows[:0]
	for _, name := range names {
		row, ok := byName[strings.ToLower(name)]
		if !ok {
			return nil, usageError{fmt.Errorf("there is no reason %q: hallmark reasons lists all", name)}
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// kindMeanings says what each kind means to a client, and its gRPC code.
var kindMeanings = [][3]string{
	{"unauthenticated", "`Unauthenticated`", "Token, live pod, or an identity that is not the caller's. The answer says nothing more: a caller who has proved nothing is told nothing."},
	{"forbidden", "`PermissionDenied`", "The caller is who it says, and may not have this: its images."},
	{"invalid", "`InvalidArgument`", "The request itself."},
	{"limited", "`ResourceExhausted`", "The caller's own rate, streams or names."},
	{"unavailable", "`Unavailable`", "Ours: overload, the Kubernetes API, a registry, the ledger. Clients come back by themselves."},
}

func writeReasonsMarkdown(w io.Writer, rows []reason) error {
	var b strings.Builder
	b.WriteString(`# Reasons of refusals

Whatever Hallmark refuses, it refuses for one of these reasons. The name is the same in the answer, in the log, in the
ledger and as the label ` + "`reason`" + ` of the metrics; the answer's id finds the line in log and ledger. What may be told to
the caller is told only to one that has proved who it is. ` + "`hallmark reasons NAME`" + ` prints a row.

`)
	for _, kind := range kindMeanings {
		fmt.Fprintf(&b, "## %s (%s)\n\n%s\n\n| reason | meaning | what to do |\n|---|---|---|\n", kind[0], kind[1], kind[2])
		for _, r := range rows {
			if r.Kind == kind[0] {
				fmt.Fprintf(&b, "| `%s` | %s | %s |\n", r.Name, r.Meaning, r.Mend)
			}
		}
		b.WriteString("\n")
	}
	_, err := io.WriteString(w, strings.TrimRight(b.String(), "\n")+"\n")
	return err
}
