package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/hallmark-ca/hallmark/cmd/internal/config"
	"github.com/hallmark-ca/hallmark/cmd/internal/state"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // it was tried and failed, or something was found wrong
	exitUsage  = 2 // flags or arguments
)

// usageError is a mistake in flags or arguments.
type usageError struct{ error }

// errFound ends a command that has printed what it found wrong.
var errFound = errors.New("something was found wrong")

// Main runs the command line and returns the exit code.
func Main(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the process at once.
	defer context.AfterFunc(ctx, stop)()
	root := Root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errFound):
		return exitFailed
	case errors.As(err, &usage) || strings.HasPrefix(err.Error(), "if any flags in the group"):
		fmt.Fprintf(stderr, "hallmark: %v\nsee hallmark --help, or --help behind the command\n", err)
		return exitUsage
	}
	fmt.Fprintf(stderr, "hallmark: %v\n", err)
	return exitFailed
}

// Root returns the whole tree of commands.
func Root() *cobra.Command {
	root := &cobra.Command{
		Use:   "hallmark",
		Short: "Certificate authority and workload identity service for Kubernetes meshes",
		Long: `Hallmark gives each pod of a mesh its SPIFFE X.509 identity: after the Kubernetes
API has vouched for the pod's token, the live pod was found behind it, and every
image in it was checked as policy demands. No proof, no identity; and every
identity can be proved afterwards.

Exit codes: 0 done; 1 it failed, or something was found wrong; 2 wrong flags or
arguments.`,
		Example: `  hallmark init --state /var/lib/hallmark
  hallmark serve --check
  hallmark serve
  hallmark status`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	group(root)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(initCommand(), serveCommand(), statusCommand(), rotateCommand(), bundleCommand(), journalCommand(), ledgerCommand(), reasonsCommand(), versionCommand())
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	return root
}

// group makes a command that only holds others: it prints its help, and a
// wrong name is a usage error.
func group(cmd *cobra.Command) {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, given []string) error {
		if len(given) == 0 {
			return cmd.Help()
		}
		text := fmt.Sprintf("unknown command %q", given[0])
		if near := cmd.SuggestionsFor(given[0]); len(near) > 0 {
			text += ": did you mean " + strings.Join(near, " or ") + "?"
		}
		return usageError{errors.New(text)}
	}
	cmd.SuggestionsMinimumDistance = 2
}

// args turns a wrong number of arguments into a usage error.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		if err := check(cmd, given); err != nil {
			return usageError{err}
		}
		return nil
	}
}

// place is the flags that say where configuration and state are.
type place struct{ config, state string }

func (p *place) addState(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.state, "state", config.DefaultState, "state directory")
	_ = cmd.MarkFlagDirname("state") // fails only for a flag that does not exist
}

// addConfig adds --config beside --state, which then only says where the
// configuration is looked for.
func (p *place) addConfig(cmd *cobra.Command) {
	p.addState(cmd)
	cmd.Flags().StringVar(&p.config, "config", "", "configuration file (default: hallmark.yaml in the state directory)")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml") // likewise
}

// load reads the configuration.
func (p *place) load(cmd *cobra.Command) (*config.Config, error) {
	dir, err := filepath.Abs(p.state)
	if err != nil {
		return nil, fmt.Errorf("finding state directory: %w", err)
	}
	file := p.config
	if file == "" {
		file = state.Dir(dir).Path(state.Config)
	}
	cfg, err := config.Load(file)
	if err != nil {
		return nil, err
	}
	if cmd.Flags().Changed("state") && cfg.State != dir {
		return nil, usageError{fmt.Errorf("--state is %s, but %s says state: %s: leave one of them out", dir, file, cfg.State)}
	}
	return cfg, nil
}

// addOutput adds -o with the formats given, the first for people.
func addOutput(cmd *cobra.Command, target *string, formats ...string) {
	cmd.Flags().StringVarP(target, "output", "o", formats[0], "format: "+strings.Join(formats, ", "))
	// It fails only for a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if !slices.Contains(formats, *target) {
			return usageError{fmt.Errorf("--output %q is not known: write one of %s", *target, strings.Join(formats, ", "))}
		}
		return nil
	}
}
