package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hallmark-ca/hallmark/cmd/internal/state"
)

type bundleFile struct {
	// The PEM file with all trusted roots, relative to the state directory or
	// absolute. It is replaced in one step whenever the roots change.
	File string `json:"file"`
	// How long a client of that file may take to read it again. Before a new root
	// signs, this time must have passed.
	ReadWithin string `json:"readWithin"`
	// The SPIFFE bundle endpoint, by which other trust domains read the roots.
	Endpoint endpointFile `json:"endpoint"`
	// Objects of the cluster that hold the roots for clients that do not ask.
	Objects objectsFile `json:"objects"`
}

// Bundle is where the bundle is published.
type Bundle struct {
	File       string // absolute
	ReadWithin time.Duration
	Endpoint   *Endpoint // nil: off
	Objects    *Objects  // nil: off
}

const maxReadWithin = 7 * 24 * time.Hour

func (c *checker) bundle(f *bundleFile, dir string) Bundle {
	b := Bundle{File: within(dir, f.File), ReadWithin: c.duration("bundle.readWithin", f.ReadWithin, maxReadWithin)}
	if b.File == "" {
		c.add(bundlePath, "no file is named", bundleMend)
	}
	return b
}

const (
	bundlePath = "bundle.file"
	bundleMend = "write bundle.pem, or a file of its own elsewhere"
)

// bundleAlone refuses a bundle file that would be written over another file that
// Hallmark reads or keeps: it is replaced without a look at what it was.
func (c *checker) bundleAlone(cfg *Config) {
	file := cfg.Bundle.File
	if file == "" {
		return
	}
	if info, err := os.Stat(file); err == nil && info.IsDir() {
		c.add(bundlePath, file+" is a folder", bundleMend)
		return
	}
	dir := state.Dir(cfg.State)
	for _, name := range []string{state.Keys, state.Journal, state.Ledger, state.Evidence} {
		if under(dir.Path(name), file) {
			c.add(bundlePath, fmt.Sprintf("it lies in %s, which holds other things than the bundle", dir.Path(name)), bundleMend)
			return
		}
	}
	if cfg.Images.Policies != "" && under(cfg.Images.Policies, file) {
		c.add(bundlePath, "it lies in the folder of images.policies", bundleMend)
		return
	}
	others := []struct{ what, file string }{
		{"the passphrase file (authority.passphraseFile)", cfg.Authority.PassphraseFile},
		{"the configuration", dir.Path(state.Config)},
		{"the record of the newest journal seen", dir.Path(state.Seen)},
		{"attest.kubeconfig", cfg.Attest.Kubeconfig},
		{"images.registries.dockerConfig", cfg.Images.DockerConfig},
	}
	if uri, err := url.Parse(cfg.Authority.KeyURI); err == nil {
		pin := strings.TrimPrefix(uri.Query().Get("pin-source"), "file:")
		others = append(others, struct{ what, file string }{"the PIN file of authority.keyURI", pin})
	}
	for _, ca := range cfg.Images.CAFiles {
		others = append(others, struct{ what, file string }{"a file of images.registries.caFiles", ca})
	}
	for _, other := range others {
		if other.file != "" && same(file, other.file) {
			c.add(bundlePath, fmt.Sprintf("%s is %s, and would be overwritten", file, other.what), bundleMend)
			return
		}
	}
}

// same tells whether two paths are one file, by name or through links.
func same(a, b string) bool {
	if resolve(a) == resolve(b) {
		return true
	}
	first, err := os.Stat(a)
	if err != nil {
		return false
	}
	second, err := os.Stat(b)
	return err == nil && os.SameFile(first, second)
}

// under tells whether file is folder or lies below it, by name or through links.
func under(folder, file string) bool {
	rel, err := filepath.Rel(resolve(folder), resolve(file))
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// resolve follows the links of as much of a path as exists.
func resolve(file string) string {
	file = filepath.Clean(file)
	resolved, err := filepath.EvalSymlinks(file)
	if err == nil {
		return resolved
	}
	if parent := filepath.Dir(file); errors.Is(err, fs.ErrNotExist) && parent != file {
		return filepath.Join(resolve(parent), filepath.Base(file))
	}
	return file
}
