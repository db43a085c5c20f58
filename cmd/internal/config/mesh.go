package config

import (
	"fmt"
	"net"
	"regexp"
)

type meshFile struct {
	// The address to listen on, TLS 1.2 or newer only.
	Listen string `json:"listen"`
	// The DNS names by which proxies reach this server; they stand in its own
	// certificate.
	Names []string `json:"names"`
	// The IP addresses by which proxies reach this server, likewise.
	IPs []string `json:"ips"`
}

type metricsFile struct {
	// The address of /metrics, /healthz and /readyz.
	Listen string `json:"listen"`
}

// Mesh is the checked mesh listener.
type Mesh struct {
	Listen string
	Names  []string
	IPs    []net.IP
}

// dnsName is a host name of RFC 1123, in lower case; a wildcard is none.
var dnsName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$`)

// maxNames bounds the names in our own certificate.
const maxNames = 50

func (c *checker) mesh(f *meshFile) Mesh {
	m := Mesh{Listen: c.listen("mesh.listen", f.Listen)}
	for i, name := range f.Names {
		if !dnsName.MatchString(name) || len(name) > 253 {
			c.add(at("mesh.names", i), fmt.Sprintf("%q is no DNS name", name), "write a whole host name in lower case; an address goes to mesh.ips")
			continue
		}
		m.Names = append(m.Names, name)
	}
	for i, text := range f.IPs {
		ip := net.ParseIP(text)
		if ip == nil {
			c.add(at("mesh.ips", i), fmt.Sprintf("%q is no IP address", text), "write an address without a port; a name goes to mesh.names")
			continue
		}
		m.IPs = append(m.IPs, ip)
	}
	switch n := len(f.Names) + len(f.IPs); {
	case n == 0:
		c.add("mesh.names", "neither a name nor an address is given", "name what proxies connect to: without it no proxy trusts this server's certificate")
	case n > maxNames:
		c.add("mesh.names", fmt.Sprintf("%d names and addresses", n), fmt.Sprintf("write at most %d", maxNames))
	}
	return m
}
