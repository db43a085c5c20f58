package config

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/rotate"
)

// Config is a checked configuration. Only [Load] and [Check] make one; it is
// not to be changed.
type Config struct {
	TrustDomain attest.TrustDomain
	ClusterID   string
	State       string // absolute
	ReplicaID   string
	Mesh        Mesh
	Metrics     string // address to listen on
	Attest      Attest
	Authority   Authority
	Rotation    rotate.Policy
	Images      Images
	Ledger      Ledger
	Bundle      Bundle
	LogLevel    slog.Level
}

var plainID = regexp.MustCompile(`^[A-Za-z0-9]([-._A-Za-z0-9]{0,126}[A-Za-z0-9])?$`)

// Check makes a checked configuration of f, or returns all that is wrong with
// it as [Problems].
func Check(f File) (*Config, error) {
	c := &checker{}
	cfg := c.check(f)
	if len(c.problems) > 0 {
		return nil, c.problems
	}
	return cfg, nil
}

func (c *checker) check(f File) *Config {
	cfg := &Config{ClusterID: f.ClusterID, State: filepath.Clean(f.State), ReplicaID: f.ReplicaID}
	var err error
	if cfg.TrustDomain, err = attest.ParseTrustDomain(f.TrustDomain); err != nil {
		c.add("trustDomain", err.Error(), "write a bare name in lower case, such as cluster.local")
	}
	if !plainID.MatchString(f.ClusterID) {
		c.add("clusterID", fmt.Sprintf("%q is no cluster id", f.ClusterID), "write 1 to 128 letters, digits, dots, dashes and underscores")
	}
	if !filepath.IsAbs(f.State) {
		c.add("state", fmt.Sprintf("%q is no absolute path", f.State), "write the whole path of the state directory")
	}
	if cfg.ReplicaID == "" {
		if cfg.ReplicaID, err = os.Hostname(); err != nil {
			c.add("replicaID", "the host has no name: "+err.Error(), "name the replica")
		}
	} else if !plainID.MatchString(f.ReplicaID) {
		c.add("replicaID", fmt.Sprintf("%q is no name", f.ReplicaID), "write 1 to 128 letters, digits, dots, dashes and underscores")
	}
	cfg.Mesh = c.mesh(&f.Mesh)
	cfg.Metrics = c.listen("metrics.listen", f.Metrics.Listen)
	if f.Metrics.Listen == f.Mesh.Listen && !isAnyPort(f.Mesh.Listen) {
		c.add("metrics.listen", "it is mesh.listen, too", "write another port")
	}
	cfg.Attest = c.attest(&f.Attest)
	cfg.Authority = c.authority(&f.Authority, f.State)
	cfg.Rotation = c.rotation(&f.Rotation, &cfg.Authority, f.Authority.UnsafeShortLifetimes)
	cfg.Images = c.images(&f.Images, f.State)
	cfg.Ledger = c.ledger(&f.Ledger, cfg.Authority.LeafMax)
	cfg.Bundle = c.bundle(&f.Bundle, f.State)
	cfg.Bundle.Endpoint = c.endpoint(&f.Bundle.Endpoint, f.State)
	cfg.Bundle.Objects = c.objects(&f.Bundle.Objects, f.Authority.UnsafeShortLifetimes)
	c.bundleAlone(cfg)
	c.endpointAlone(cfg)
	cfg.LogLevel = choose(c, "log.level", f.Log.Level, []string{"debug", "info", "warn", "error"},
		[]slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError})
	return cfg
}

// isAnyPort tells whether the kernel picks the port, so that two listeners may
// be written alike.
func isAnyPort(listen string) bool { return len(listen) > 1 && listen[len(listen)-2:] == ":0" }

// within places a relative file below the state directory.
func within(state, file string) string {
	if file == "" || filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(state, file)
}
