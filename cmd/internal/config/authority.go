package config

import (
	"fmt"
	"strings"
	"time"

	"github.com/hallmark-ca/hallmark/ca/keys"
	"github.com/hallmark-ca/hallmark/ca/profile"
)

type authorityFile struct {
	// The file with the passphrase that seals the root's key, relative to the
	// state directory or absolute. Readable by its owner alone. Kept on another
	// volume (a mounted Secret), it makes a copied state directory worthless.
	PassphraseFile string `json:"passphraseFile"`
	// Where the keys of roots are made: empty means files in the state directory,
	// sealed; pkcs11:token=LABEL?module-path=/PATH.so&pin-source=/PATH a token, of
	// which a key never leaves. The PIN is in the file that pin-source names,
	// readable by its owner alone. A key that exists is found by the journal, in
	// the same token by the module and PIN file that stand here.
	KeyURI string `json:"keyURI"`
	// What kind of key a new root has: P-256, P-384, RSA-3072 or RSA-4096.
	KeyAlgorithm string `json:"keyAlgorithm"`
	// The life of a root that `hallmark init` makes; at most 87600h (10 years).
	RootLifetime string `json:"rootLifetime"`
	// The life of the issuing CA, which each replica makes in memory and renews at
	// half of it: at least twice authority.leaf.max.
	IssuingLifetime string `json:"issuingLifetime"`
	// The certificates of workloads.
	Leaf leafFile `json:"leaf"`
	// Permits lifetimes of seconds, below the floors: for tests.
	UnsafeShortLifetimes bool `json:"unsafeShortLifetimes"`
}

type leafFile struct {
	// The lifetime where a proxy asks for none; up to 5 % shorter at random, so
	// that renewals spread. A mesh survives an outage of half of it.
	Default string `json:"default"`
	// The longest lifetime that is given; at most 24h.
	Max string `json:"max"`
	// The shortest lifetime that is given; at least 1m.
	Min string `json:"min"`
	// How long before its issue a certificate is valid, for clocks that are
	// behind; at most 10m.
	BackDate string `json:"backDate"`
}

// Authority is the checked authority.
type Authority struct {
	PassphraseFile  string // absolute
	KeyURI          string
	KeyAlgorithm    keys.Algorithm
	RootLifetime    time.Duration
	IssuingLifetime time.Duration
	Leaf            *profile.Leaf
	LeafDefault     time.Duration
	LeafMax         time.Duration
}

// Keys returns the configuration of the keys; those in files lie in dir.
func (a *Authority) Keys(dir string) keys.Config {
	return keys.Config{Dir: dir, PassphraseFile: a.PassphraseFile, URI: a.KeyURI, Algorithm: a.KeyAlgorithm}
}

const (
	maxRootLifetime    = 87600 * time.Hour
	minRootLifetime    = 24 * time.Hour
	maxIssuingLifetime = 2160 * time.Hour
	minIssuingLifetime = time.Hour
	ceiling            = 1 << 62 // of values whose own rule stands elsewhere
)

func (c *checker) authority(f *authorityFile, state string) Authority {
	a := Authority{
		PassphraseFile:  within(state, f.PassphraseFile),
		KeyURI:          f.KeyURI,
		RootLifetime:    c.duration("authority.rootLifetime", f.RootLifetime, maxRootLifetime),
		IssuingLifetime: c.duration("authority.issuingLifetime", f.IssuingLifetime, maxIssuingLifetime),
		LeafDefault:     c.duration("authority.leaf.default", f.Leaf.Default, ceiling),
		LeafMax:         c.duration("authority.leaf.max", f.Leaf.Max, ceiling),
	}
	shortest := c.duration("authority.leaf.min", f.Leaf.Min, ceiling)
	var err error
	if a.KeyAlgorithm, err = keys.ParseAlgorithm(f.KeyAlgorithm); err != nil {
		c.add("authority.keyAlgorithm", err.Error(), "write P-256")
	}
	if err := keys.CheckURI(f.KeyURI); err != nil {
		c.add("authority.keyURI", err.Error(), "write pkcs11:token=LABEL?module-path=/PATH.so&pin-source=/PATH, or nothing for sealed files")
	}
	if f.PassphraseFile == "" {
		c.add("authority.passphraseFile", "no file is named", "name the file that hallmark init made (keys/passphrase), or the one that you moved it to")
	}
	if f.Leaf.BackDate == "0s" || f.Leaf.BackDate == "0" {
		f.Leaf.BackDate = "1ns" // none; the profile counts whole seconds
	}
	backDate := c.duration("authority.leaf.backDate", f.Leaf.BackDate, ceiling)
	if a.LeafDefault == 0 || a.LeafMax == 0 || shortest == 0 || backDate == 0 {
		return a // what was said of them is enough
	}
	if a.Leaf, err = profile.NewLeaf(profile.LeafConfig{
		Default: a.LeafDefault, Max: a.LeafMax, Min: shortest, BackDate: backDate.Truncate(time.Second), UnsafeShort: f.UnsafeShortLifetimes,
	}); err != nil {
		for line := range strings.SplitSeq(strings.TrimPrefix(err.Error(), "checking leaf profile: "), "\n") {
			c.add("authority.leaf", line, "see docs/configuration.md for the floors and ceilings")
		}
	}
	c.lifetimes(&a, f.UnsafeShortLifetimes)
	return a
}

// lifetimes holds the lives of root, issuing CA and leaf against each other.
func (c *checker) lifetimes(a *Authority, unsafeShort bool) {
	if a.IssuingLifetime == 0 || a.RootLifetime == 0 {
		return
	}
	if a.IssuingLifetime < 2*a.LeafMax {
		c.add("authority.issuingLifetime", fmt.Sprintf("%s is less than twice authority.leaf.max (%s): the issuing CA is renewed at half its life, and what it signs just before would be cut short", Short(a.IssuingLifetime), Short(a.LeafMax)),
			"write at least "+Short(2*a.LeafMax))
	}
	if a.RootLifetime < 2*a.IssuingLifetime {
		c.add("authority.rootLifetime", fmt.Sprintf("%s is less than twice authority.issuingLifetime (%s)", Short(a.RootLifetime), Short(a.IssuingLifetime)), "write a longer one")
	}
	if unsafeShort {
		return
	}
	if a.IssuingLifetime < minIssuingLifetime {
		c.add("authority.issuingLifetime", Short(a.IssuingLifetime)+" is below the floor", "write at least "+Short(minIssuingLifetime))
	}
	if a.RootLifetime < minRootLifetime {
		c.add("authority.rootLifetime", Short(a.RootLifetime)+" is below the floor", "write at least "+Short(minRootLifetime))
	}
}
