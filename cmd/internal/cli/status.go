package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallmark-ca/hallmark/cmd/internal/admin"
)

// asking is the flags of commands that ask the server.
type asking struct {
	place
	output string
}

func (a *asking) add(cmd *cobra.Command) {
	addOutput(cmd, &a.output, "text", "json")
	a.addState(cmd)
}

func (a *asking) client() (*admin.Client, error) {
	dir, err := a.dir()
	if err != nil {
		return nil, err
	}
	return admin.NewClient(dir.Path(admin.SocketName))
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func statusCommand() *cobra.Command {
	var a asking
	var watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how the running server stands, on one screen",
		Long: `Show how the server stands that runs on the state directory: whether it is ready,
what it signs under and until when, how long the mesh goes on without it, and
where the rotation of its root stands. It asks the server on its admin socket,
which answers root and the account that the server runs as.

Ends with 1 if the server is not ready, or something is wrong.`,
		Example: `  hallmark status
  hallmark status --watch
  hallmark status -o json`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			return show(cmd, a.output, watch, client.Status, statusWrong, writeStatus)
		},
	}
	a.add(cmd)
	addWatch(cmd, &watch)
	return cmd
}

func addWatch(cmd *cobra.Command, watch *bool) {
	cmd.Flags().BoolVar(watch, "watch", false, "on a terminal, look again every two seconds until Ctrl-C")
	cmd.MarkFlagsMutuallyExclusive("watch", "output")
}

// show prints what ask returns, once or live.
func show[T any](cmd *cobra.Command, format string, watch bool, ask func(context.Context) (T, error), wrong func(*T) bool, text func(io.Writer, *T) error) error {
	out := cmd.OutOrStdout()
	if _, _, ok := terminal(out); watch && ok {
		return live(cmd.Context(), out, func(ctx context.Context) (string, error) {
			answer, err := ask(ctx)
			if err != nil {
				return "", err
			}
			var b strings.Builder
			err = text(&b, &answer)
			return b.String(), err
		})
	}
	answer, err := ask(cmd.Context())
	if err != nil {
		return err
	}
	if format == "json" {
		err = writeJSON(out, answer)
	} else {
		err = text(out, &answer)
	}
	if err == nil && wrong(&answer) {
		err = errFound
	}
	return err
}

func statusWrong(s *admin.Status) bool {
	return !s.Ready || rotationWrong(&s.Rotation) || slices.ContainsFunc(s.Facts.More, func(l admin.Line) bool { return l.Bad })
}

func rotationWrong(s *admin.RotationStatus) bool { return len(troubles(s)) > 0 }

func seconds(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }

func writeStatus(w io.Writer, s *admin.Status) error {
	v := view{w, s.At}
	f := &s.Facts
	running := ""
	if !f.Started.IsZero() {
		running = ", running since " + v.since(f.Started)
	}
	v.line("hallmark", "%s%s", cmp.Or(f.Version, "(no version)"), running)
	v.line("serves", "trust domain %s, cluster %s, replica %s", f.TrustDomain, f.Cluster, f.Replica)
	ready := "yes"
	if !s.Ready {
		ready = "NO"
	}
	v.line("ready", "%s", ready)
	for _, c := range s.Conditions {
		if !c.Ready {
			v.line("", "%s %s: %s", marks["wrong"], c.Name, c.Text)
		}
	}
	if !f.IssuingUntil.IsZero() {
		v.line("issuing CA", "%s until %s", shortID(f.Issuing), v.until(f.IssuingUntil))
	}
	if !f.ServingUntil.IsZero() {
		v.line("mesh port", "its certificate lasts until %s", v.until(f.ServingUntil))
	}
	if f.ViewAge != nil {
		v.line("cluster view", "%s old", span(seconds(*f.ViewAge)))
	}
	if f.ImageGate != "" {
		v.line("image gate", "%s", f.ImageGate)
	}
	if f.LedgerUsage != nil {
		v.line("ledger", "%.0f %% of ledger.maxBytes", 100**f.LedgerUsage)
	}
	if f.OutageTolerance > 0 {
		v.line("outage", "the mesh goes on for %s without this server", span(seconds(f.OutageTolerance)))
	}
	for _, l := range f.More {
		text := l.Text
		if l.Bad {
			text = marks["wrong"] + " " + text
		}
		v.line(l.Name, "%s", text)
	}
	fmt.Fprintln(w)
	return writeRotation(w, &s.Rotation, 0)
}
