package cli

import (
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallmark-ca/hallmark/cmd/internal/config"
	"github.com/hallmark-ca/hallmark/cmd/internal/state"
)

// founding is the flags of init.
type founding struct {
	place
	ifAbsent     bool
	trustDomain  string
	clusterID    string
	kubeconfig   string
	mesh         string
	names        []string
	ips          []string
	metrics      string
	images       string
	policies     string
	rootLifetime string
	keyAlgorithm string
	keyURI       string
}

func initCommand() *cobra.Command {
	var f founding
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a state directory: configuration, root key and root certificate",
		Long: `Make a state directory: a configuration with a comment on every setting, the
root's key and certificate, and the first record of the journal. Nothing that
exists is overwritten.

The key is sealed in a file, under a passphrase file that is made beside it; with
--key-uri it is made in a PKCS #11 token, and never leaves it. The token is there
already, and its PIN in a file that only its owner can read.

With --config, the values come from that file, and no configuration is written:
that is how a container makes its root at its first start.`,
		Example: `  hallmark init --state /var/lib/hallmark --trust-domain example.org
  hallmark init --state ./state --kubeconfig ~/.kube/config --mesh-listen 127.0.0.1:15012 --mesh-ip 127.0.0.1
  hallmark init --key-uri 'pkcs11:token=mesh?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/etc/hallmark/pin'
  hallmark init --config /etc/hallmark/hallmark.yaml --if-absent`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	d := config.Defaults()
	flags := cmd.Flags()
	f.addConfig(cmd)
	flags.Lookup("config").Usage = "take the values from this file, and write none"
	flags.BoolVar(&f.ifAbsent, "if-absent", false, "succeed where an authority was founded before")
	flags.StringVar(&f.trustDomain, "trust-domain", d.TrustDomain, "SPIFFE trust domain")
	flags.StringVar(&f.clusterID, "cluster-id", d.ClusterID, "id of the cluster")
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig of the Kubernetes API (default: the pod's own account)")
	flags.StringVar(&f.mesh, "mesh-listen", d.Mesh.Listen, "address that proxies connect to")
	flags.StringSliceVar(&f.names, "mesh-name", d.Mesh.Names, "DNS names by which proxies reach this server")
	flags.StringSliceVar(&f.ips, "mesh-ip", nil, "IP addresses by which proxies reach this server")
	flags.StringVar(&f.metrics, "metrics-listen", d.Metrics.Listen, "address of metrics and health")
	flags.StringVar(&f.images, "images", d.Images.Issuance, "image gate: disabled, audit or enforce")
	flags.StringVar(&f.policies, "policies", "", "folder of ClusterImagePolicy files")
	flags.StringVar(&f.rootLifetime, "root-lifetime", d.Authority.RootLifetime, "life of the root")
	flags.StringVar(&f.keyAlgorithm, "key-algorithm", d.Authority.KeyAlgorithm, "kind of the root's key: P-256, P-384, RSA-3072 or RSA-4096")
	flags.StringVar(&f.keyURI, "key-uri", "", "PKCS #11 token to make the root's key in (default: a sealed file)")
	_ = cmd.RegisterFlagCompletionFunc("key-algorithm", cobra.FixedCompletions([]string{"P-256", "P-384", "RSA-3072", "RSA-4096"}, cobra.ShellCompDirectiveNoFileComp))
	for _, name := range []string{"trust-domain", "cluster-id", "kubeconfig", "mesh-listen", "mesh-name", "mesh-ip", "metrics-listen", "images", "policies", "root-lifetime", "key-algorithm", "key-uri"} {
		cmd.MarkFlagsMutuallyExclusive("config", name)
	}
	return cmd
}

func (f *founding) run(cmd *cobra.Command) error {
	cfg, text, err := f.configuration(cmd)
	if err != nil {
		return err
	}
	root, err := state.Found(cmd.Context(), state.Founding{
		Dir: state.Dir(cfg.State), TrustDomain: cfg.TrustDomain, RootLifetime: cfg.Authority.RootLifetime,
		Keys: cfg.Authority.Keys(state.Dir(cfg.State).Path(state.Keys)), BundleFile: cfg.Bundle.File, Config: text, Now: time.Now(),
	})
	var exists *state.ExistsError
	if errors.As(err, &exists) && exists.Founded && f.ifAbsent {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "an authority was founded in", cfg.State, "before: nothing was changed")
		return err
	}
	if err != nil {
		return err
	}
	return announce(cmd.OutOrStdout(), cfg, root, text != nil)
}

// configuration returns the values, and the file to write where there is one.
func (f *founding) configuration(cmd *cobra.Command) (*config.Config, []byte, error) {
	if f.config != "" {
		cfg, err := f.load(cmd)
		return cfg, nil, err
	}
	file := config.Defaults()
	var err error
	if file.State, err = filepath.Abs(f.state); err != nil {
		return nil, nil, fmt.Errorf("finding state directory: %w", err)
	}
	for _, path := range []struct{ from, to *string }{{&f.kubeconfig, &file.Attest.Kubeconfig}, {&f.policies, &file.Images.Policies}} {
		if *path.from == "" {
			continue
		}
		if *path.to, err = filepath.Abs(*path.from); err != nil {
			return nil, nil, fmt.Errorf("finding %s: %w", *path.from, err)
		}
	}
	file.TrustDomain, file.ClusterID = f.trustDomain, f.clusterID
	file.Mesh.Listen, file.Mesh.Names, file.Metrics.Listen = f.mesh, f.names, f.metrics
	file.Mesh.IPs = append(file.Mesh.IPs, f.ips...)
	file.Images.Issuance, file.Authority.RootLifetime = f.images, f.rootLifetime
	file.Authority.KeyAlgorithm, file.Authority.KeyURI = f.keyAlgorithm, f.keyURI
	cfg, err := config.Check(file)
	if err != nil {
		return nil, nil, usageError{err}
	}
	file.Authority.KeyAlgorithm = string(cfg.Authority.KeyAlgorithm) // as it is spelled
	text, err := config.Render(file)
	return cfg, text, err
}

func announce(w io.Writer, cfg *config.Config, root *x509.Certificate, wrote bool) error {
	next := ""
	if wrote {
		flag := ""
		if cfg.State != config.DefaultState {
			flag = " --state " + cfg.State
		}
		next = fmt.Sprintf(`configuration  %s

Next:
  hallmark serve%s --check   # does everything it needs answer?
  hallmark serve%s
`, state.Dir(cfg.State).Path(state.Config), flag, flag)
		if cfg.Authority.KeyURI == "" {
			next += fmt.Sprintf(`Move %s to another volume to keep a copied state directory worthless,
and name it in authority.passphraseFile.
`, cfg.Authority.PassphraseFile)
		}
	}
	where := "sealed in " + state.Dir(cfg.State).Path(state.Keys)
	if cfg.Authority.KeyURI != "" {
		where = cfg.Authority.KeyURI
	}
	_, err := fmt.Fprintf(w, `founded        trust domain %s
root           %s
               until %s, key id %s
key            %s, %s
bundle         %s
%s`, cfg.TrustDomain, root.Subject, root.NotAfter.Format(time.DateOnly), hex.EncodeToString(root.SubjectKeyId),
		cfg.Authority.KeyAlgorithm, where, cfg.Bundle.File, next)
	return err
}
