package config

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hallmark-ca/hallmark/signing"
)

type imagesFile struct {
	// The image gate: disabled (nothing is looked at), audit (everything is
	// decided and recorded, nothing refused) or enforce (a pod with an image that
	// no policy passes gets no identity).
	Issuance string `json:"issuance"`
	// The gate of single namespaces, by name, where it differs from
	// images.issuance.
	Namespaces map[string]string `json:"namespaces"`
	// A folder of ClusterImagePolicy files (policy.sigstore.dev, YAML), relative
	// to the state directory or absolute. It is read again when it changes.
	Policies string `json:"policies"`
	// An image that is named by tag only, before it runs: resolve (asked of the
	// registry now, for a certificate of the shortest life) or deny.
	Tags string `json:"tags"`
	// Ephemeral containers: count (always) or count-while-running.
	Ephemeral string `json:"ephemeral"`
	// The pods that the mesh itself needs, which start before policy can be in
	// place.
	Infrastructure infrastructureFile `json:"infrastructure"`
	// How registries are reached.
	Registries registriesFile `json:"registries"`
}

type infrastructureFile struct {
	// The gate of these accounts, whatever their namespace says: disabled, audit
	// or enforce.
	Mode string `json:"mode"`
	// The accounts, NAMESPACE/ACCOUNT.
	Accounts []string `json:"accounts"`
}

type registriesFile struct {
	// Registries (HOST or HOST:PORT) that are spoken to without TLS.
	Insecure []string `json:"insecure"`
	// Registries (HOST or HOST:PORT) that may lie at loopback, link-local or
	// private addresses; to all others no such connection is made.
	AllowPrivate []string `json:"allowPrivate"`
	// PEM files with the CAs of registries, beside the system's; absolute paths.
	CAFiles []string `json:"caFiles"`
	// A docker config.json with the credentials for registries; an absolute path.
	DockerConfig string `json:"dockerConfig"`
}

// Images is the checked image gate.
type Images struct {
	Issuance       signing.Mode
	Namespaces     map[string]signing.Mode
	Policies       string // absolute, or empty for none
	ResolveTags    bool
	CountEphemeral bool // also those that have ended
	Infrastructure signing.Mode
	Accounts       []string // NAMESPACE/ACCOUNT
	Insecure       []string
	AllowPrivate   []string
	CAFiles        []string
	DockerConfig   string
}

func (c *checker) gate(path, value string) signing.Mode {
	modes := []signing.Mode{signing.Disabled, signing.Audit, signing.Enforce}
	return choose(c, path, value, []string{"disabled", "audit", "enforce"}, modes)
}

func (c *checker) images(f *imagesFile, state string) Images {
	i := Images{
		Issuance:       c.gate("images.issuance", f.Issuance),
		Namespaces:     map[string]signing.Mode{},
		Policies:       within(state, f.Policies),
		ResolveTags:    choose(c, "images.tags", f.Tags, []string{"resolve", "deny"}, []bool{true, false}),
		CountEphemeral: choose(c, "images.ephemeral", f.Ephemeral, []string{"count", "count-while-running"}, []bool{true, false}),
		Infrastructure: c.gate("images.infrastructure.mode", f.Infrastructure.Mode),
		Accounts:       f.Infrastructure.Accounts,
		Insecure:       f.Registries.Insecure,
		AllowPrivate:   f.Registries.AllowPrivate,
		CAFiles:        f.Registries.CAFiles,
		DockerConfig:   f.Registries.DockerConfig,
	}
	enforced := i.Issuance == signing.Enforce
	for _, ns := range slices.Sorted(maps.Keys(f.Namespaces)) {
		path := join("images.namespaces", ns)
		if !dnsName.MatchString(ns) || len(ns) > 63 || strings.Contains(ns, ".") {
			c.add(path, fmt.Sprintf("%q is no namespace", ns), "write its exact name; patterns are not known here")
		}
		i.Namespaces[ns] = c.gate(path, f.Namespaces[ns])
		enforced = enforced || i.Namespaces[ns] == signing.Enforce
	}
	if enforced && f.Policies == "" {
		c.add("images.policies", "enforce without a policy refuses every pod", "name the folder of the ClusterImagePolicy files, or write audit")
	}
	c.accounts(f.Infrastructure.Accounts)
	c.registries(&f.Registries)
	return i
}

func (c *checker) accounts(accounts []string) {
	for n, account := range accounts {
		ns, name, ok := strings.Cut(account, "/")
		if !ok || !dnsName.MatchString(ns) || !dnsName.MatchString(name) {
			c.add(at("images.infrastructure.accounts", n), fmt.Sprintf("%q is no account", account), "write NAMESPACE/ACCOUNT")
		}
	}
}

func (c *checker) registries(f *registriesFile) {
	c.hosts("images.registries.insecure", f.Insecure)
	c.hosts("images.registries.allowPrivate", f.AllowPrivate)
	for n, file := range f.CAFiles {
		if !filepath.IsAbs(file) {
			c.add(at("images.registries.caFiles", n), fmt.Sprintf("%q is no absolute path", file), "write the whole path")
		}
	}
	if f.DockerConfig != "" && !filepath.IsAbs(f.DockerConfig) {
		c.add("images.registries.dockerConfig", fmt.Sprintf("%q is no absolute path", f.DockerConfig), "write the whole path")
	}
}

func (c *checker) hosts(path string, hosts []string) {
	for n, host := range hosts {
		if host == "" || strings.ContainsAny(host, "/@* ") {
			c.add(at(path, n), fmt.Sprintf("%q is no registry", host), "write HOST or HOST:PORT, without scheme and path")
		}
	}
}
