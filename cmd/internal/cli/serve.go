package cli

import (
	"github.com/spf13/cobra"

	"github.com/hallmark-ca/hallmark/cmd/internal/serve"
)

func serveCommand() *cobra.Command {
	var p place
	var check bool
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
  hallmark serve --config /etc/hallmark/hallmark.yaml --check`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := p.load(cmd)
			if err != nil {
				return err
			}
			if !check {
				return serve.Run(cmd.Context(), cfg, cmd.ErrOrStderr())
			}
			ok, err := serve.Check(cmd.Context(), cfg, cmd.OutOrStdout())
			if err == nil && !ok {
				err = errFound
			}
			return err
		},
	}
	p.addConfig(cmd)
	cmd.Flags().BoolVar(&check, "check", false, "validate and probe, serve nothing")
	return cmd
}
