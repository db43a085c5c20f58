package cli

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallmark-ca/hallmark/ca/journal"
	"github.com/hallmark-ca/hallmark/ca/rotate"
	"github.com/hallmark-ca/hallmark/cmd/internal/admin"
	"github.com/hallmark-ca/hallmark/cmd/internal/state"
)

// namesShown is how many of those behind a gate are shown by name.
const namesShown = 10

func rotateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Rotate the root, by proof that every proxy is ready",
		Long: `Rotate the root of trust. A root lives through these phases:

  prepared    it exists, and is trusted by nobody
  published   it is in the bundle, and signs nothing
  active      it signs; the one before is draining: trusted, and signs nothing new
  retired     it is out of the bundle; its key is destroyed after a hold

Between them stand gates. Gate A, before activate, opens when every consumer is
known to hold the new root; gate B, before retire, when no certificate under the
old one is left and a rehearsal has shown that nobody needs it. Who holds a gate
up is listed by name. Nothing is lost by waiting.

All commands ask the server that runs on the state directory, on its admin socket,
which answers root and the account that the server runs as. Who asked goes into
the journal.`,
		Example: `  hallmark rotate start       # make a new root and publish it
  hallmark rotate status --watch
  hallmark rotate activate    # when gate A is open
  hallmark rotate retire      # when gate B is open
  hallmark rotate run         # all of it, by itself`,
	}
	group(cmd)
	cmd.AddCommand(rotateStatusCommand())
	for _, s := range steered {
		cmd.AddCommand(s.command())
	}
	return cmd
}

func rotateStatusCommand() *cobra.Command {
	var a asking
	var watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show phase, gates, and who is behind by name",
		Long: `Show where the rotation stands: the phase, what comes next and who takes it, every
root with its age and what is left under it, each gate as n of m, who holds it up
by name, and when it can open at the earliest.

-o json has up to 100 names a gate. Ends with 1 if something is wrong; a gate that
is shut is not.`,
		Example: `  hallmark rotate status
  hallmark rotate status --watch
  hallmark rotate status -o json | jq '.gates[].behind'`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			return show(cmd, a.output, watch, client.Rotation, rotationWrong, func(w io.Writer, s *admin.RotationStatus) error {
				return writeRotation(w, s, namesShown)
			})
		},
	}
	a.add(cmd)
	addWatch(cmd, &watch)
	return cmd
}

// steer is a command that asks the server for a step.
type steer struct {
	action               admin.Action
	args                 string // behind the name
	short, long, example string
	root                 journal.Phase // of the roots that --root may name; "": it takes none
	force                string        // what happens to those who are behind; "": it takes no --force
}

const (
	cutOff = "Root %s leaves the bundle at once: whoever has only a certificate under it, or\ntrusts no newer one, is cut off, and no command takes that back.\n"
	early  = "Root %s signs at once: whoever does not hold it refuses the certificates of its\npeers, and cannot be reached, until it has fetched the bundle.\n"
)

var steered = []steer{
	{
		action: admin.Start, short: "Make a new root and publish it",
		long: `Make a root with a new key and a new name, and put it into the bundle, from where
it goes to every consumer. It signs nothing yet, and hallmark rotate abort takes it
back without a trace on the mesh. One that was prepared before, and cut off there,
is published instead.`,
		example: `  hallmark rotate start`,
	},
	{
		action: admin.Activate, force: early, short: "Sign under the new root, when gate A is open",
		long: `Sign under the published root: issuing CAs are made under it, and every consumer is
given a new certificate, spread over time. The root before is draining: it stays
trusted. Refused while gate A is shut, with who holds it up.`,
		example: `  hallmark rotate activate
  hallmark rotate activate --force --reason "node-7 burnt down, its pods are gone"`,
	},
	{
		action: admin.Retire, root: journal.Draining, force: cutOff, short: "Take an old root out of the bundle, when gate B is open",
		long: `Take a draining root out of the bundle; without --root, the oldest. Its certificate
stays in the journal, its key is destroyed after rotation.keyHold. Refused while gate
B is shut: certificates under the old root are left, or the rehearsal has not passed.
Where the rehearsal is all that is missing, this begins it: our own certificate
changes to the new root, every connection is ended once, and all consumers have to
come back.`,
		example: `  hallmark rotate retire
  hallmark rotate retire --root 3f0c91d2
  hallmark rotate retire --force --reason "audit: the old key goes today" --yes`,
	},
	{
		action: admin.Abort, short: "Take back the root that is on its way",
		long: `Take back the root that is prepared or published: nothing was signed under it. It
works in a pause too. A root that is active cannot be aborted; the way back from it
is another rotation.`,
		example: `  hallmark rotate abort`,
	},
	{
		action: admin.Trust, args: " FILE", short: "Trust a root that is not ours, without signing under it",
		long: `Put the one root in FILE (PEM; - is standard input) into the bundle. It is trusted
by every consumer, and signs nothing here: for another mesh, or for the way in from
another CA. Everybody whom its owner names in our trust domain is then believed: see
that the fingerprint is the one you were told. hallmark rotate status shows who does
not hold it yet.`,
		example: `  hallmark rotate trust istio-root.pem
  kubectl get configmap -n shop istio-ca-root-cert -o jsonpath='{.data.root-cert\.pem}' | hallmark rotate trust -`,
	},
	{
		action: admin.Untrust, root: journal.Trusted, force: cutOff, short: "Take a root out again that is only trusted",
		long: `Take a root out of the bundle that rotate trust has put there. Who still has a
certificate under it is not known here, so that --force and --reason say that
nobody has.`,
		example: `  hallmark rotate untrust --root 9b1c44aa --force --reason "all namespaces have moved"`,
	},
	{
		action: admin.Run, short: "Go through all phases by itself, waiting at the gates",
		long: `Go on with the rotation that is under way, or begin one, and take each step as soon
as its gate is open and one of rotation.windows is. It ends a pause. The journal keeps
it: it goes on after a restart.`,
		example: `  hallmark rotate run && hallmark rotate status --watch`,
	},
	{
		action: admin.Pause, short: "Stop where it is",
		long: `Take no more steps, of a person or by itself, until hallmark rotate resume, or run.
A rehearsal that is on is taken back. Issuance goes on.`,
		example: `  hallmark rotate pause`,
	},
	{
		action: admin.Resume, short: "End a pause",
		long: `End a pause. The rotation goes on by a person's commands, or by itself where
rotation.automatic is run.`,
		example: `  hallmark rotate resume`,
	},
}

// given is what was typed behind one of them.
type given struct {
	asking
	root, reason string
	force, yes   bool
}

func (s steer) command() *cobra.Command {
	var g given
	count := cobra.NoArgs
	if s.args != "" {
		count = cobra.ExactArgs(1)
	}
	cmd := &cobra.Command{
		Use: string(s.action) + s.args, Short: s.short, Long: s.long, Example: s.example, Args: args(count),
		RunE: func(cmd *cobra.Command, files []string) error { return s.run(cmd, &g, files) },
	}
	g.add(cmd)
	flags := cmd.Flags()
	if s.root != "" {
		flags.StringVar(&g.root, "root", "", "the root's id, or its first characters")
		_ = cmd.RegisterFlagCompletionFunc("root", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return g.roots(s.root), cobra.ShellCompDirectiveNoFileComp
		})
	}
	if s.force != "" {
		flags.BoolVar(&g.force, "force", false, "pass the gate though it is shut; needs --reason")
		flags.StringVar(&g.reason, "reason", "", "why, for the journal")
		flags.BoolVar(&g.yes, "yes", false, "do not ask whether --force is meant")
	}
	if s.args != "" {
		cmd.ValidArgsFunction = cobra.FixedCompletions([]string{"pem", "crt", "cer"}, cobra.ShellCompDirectiveFilterFileExt)
	}
	return cmd
}

// roots lists those of a phase, for completion, from the files.
func (g *given) roots(phase journal.Phase) []string {
	dir, err := g.dir()
	if err != nil {
		return nil
	}
	current, err := journal.ReadFile(dir.FS(), state.Journal)
	if err != nil {
		return nil
	}
	var ids []string
	for _, r := range current.In(phase) {
		ids = append(ids, fmt.Sprintf("%s\t%s since %s", r.ID, r.Phase, at(r.Since)))
	}
	return ids
}

func (s steer) run(cmd *cobra.Command, g *given, files []string) error {
	if err := s.check(cmd, g); err != nil {
		return err
	}
	client, err := g.client()
	if err != nil {
		return err
	}
	var order admin.Order
	if len(files) > 0 {
		if order.Certificate, err = foreignRoot(cmd, files[0]); err != nil {
			return err
		}
	}
	if g.root != "" || g.force {
		current, err := client.Rotation(cmd.Context())
		if err != nil {
			return err
		}
		if order.Root, err = pickRoot(current.Roots, g.root); err != nil {
			return err
		}
		if g.force {
			order.Force = &admin.Force{Reason: g.reason}
			s.warn(cmd.ErrOrStderr(), &current, order.Root)
			if err := confirm(cmd, g.yes); err != nil {
				return err
			}
		}
	}
	after, err := client.Do(cmd.Context(), s.action, order)
	if err != nil {
		return err
	}
	if g.output == "json" {
		return writeJSON(cmd.OutOrStdout(), after)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%-14s%s\n", "done", s.action)
	return writeRotation(cmd.OutOrStdout(), &after, namesShown)
}

// check refuses what can be refused before the server is asked.
func (s steer) check(cmd *cobra.Command, g *given) error {
	switch {
	case s.action == admin.Untrust && g.root == "":
		return usageError{errors.New("--root says which: hallmark rotate status lists them")}
	case g.force && g.reason == "":
		return usageError{errors.New("--force needs --reason: why, for the journal")}
	case !g.force && (g.reason != "" || g.yes):
		return usageError{errors.New("--reason and --yes belong to --force")}
	case g.force:
		return confirmable(cmd, g.yes)
	}
	return nil
}

// pickRoot finds a root by its id or the beginning of it. What is not found is
// the server's to judge: it has the newest list.
func pickRoot(roots []rotate.RootStatus, text string) (string, error) {
	const least = 4
	text = strings.ToLower(strings.ReplaceAll(text, ":", ""))
	found := ""
	for _, r := range roots {
		switch {
		case r.ID == text:
			return text, nil
		case len(text) < least || !strings.HasPrefix(r.ID, text):
		case found != "":
			return "", usageError{fmt.Errorf("--root %s is the beginning of more than one: write more of it", text)}
		default:
			found = r.ID
		}
	}
	if found == "" {
		return text, nil
	}
	return found, nil
}

// warn says what a gate is passed over.
func (s steer) warn(w io.Writer, current *admin.RotationStatus, root string) {
	name := map[admin.Action]string{admin.Activate: "A", admin.Retire: "B", admin.Untrust: "trust"}[s.action]
	v := view{w, current.At}
	for i := range current.Gates {
		g := &current.Gates[i]
		if g.Name != name || root != "" && g.Root != root {
			continue
		}
		fmt.Fprintf(w, s.force, shortID(g.Root))
		if name == "trust" {
			return // who holds it is no measure of who needs it
		}
		_ = v.gate(g, namesShown) // to standard error, which nothing depends on
		return
	}
	if root != "" {
		fmt.Fprintf(w, s.force, printable(shortID(root)))
	}
}

// foreignRoot reads the file and shows what it is.
func foreignRoot(cmd *cobra.Command, name string) (string, error) {
	const most = 32 << 10
	in := cmd.InOrStdin()
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return "", fmt.Errorf("reading root: %w", err)
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, most+1))
	if err == nil && len(text) > most {
		err = fmt.Errorf("it has more than %d bytes", most)
	}
	var der []byte
	if err == nil {
		der, err = admin.ParseCertificate(text)
	}
	var cert *x509.Certificate
	if err == nil {
		cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		return "", fmt.Errorf("reading root %s: %w", name, err)
	}
	sum := sha256.Sum256(cert.Raw)
	fmt.Fprintf(cmd.ErrOrStderr(), "%-14s%s\n%-14suntil %s, SHA-256 %X\n", "root", printable(cert.Subject.String()), "", cert.NotAfter.UTC().Format(time.DateOnly), sum)
	return string(bytes.TrimSpace(text)) + "\n", nil
}
