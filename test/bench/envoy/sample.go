package envoy

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/hallmark-ca/hallmark/test/tools"
)

// change is one value of a shipped sample that an operator would change, too.
type change struct {
	from, to string
	times    int // how often it stands in the sample
}

// configure writes the shipped sample, and the files of token and roots that one
// of them needs, with this Envoy's values in them.
func (e *Envoy) configure() error {
	changes, err := e.changes()
	if err != nil {
		return err
	}
	text, err := sample(e.cfg.Sample, changes)
	if err != nil {
		return err
	}
	for name, c := range map[string]change{
		"token.yaml": {"filename: " + mounted, "filename: " + e.tokenFile(), 1},
		"trust.yaml": {"filename: /var/run/secrets/hallmark/bundle.pem", "filename: " + e.cfg.Bundle, 1},
	} {
		text, err := sample(name, []change{c})
		if err != nil {
			return err
		}
		if err := os.WriteFile(e.file(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(e.file("envoy.yaml"), []byte(text), 0o600)
}

// mounted is the token's file in a pod.
const mounted = "/var/run/secrets/tokens/istio-token"

// sample returns a shipped file with values in place of those that it tells its
// reader to change, or that are a pod's own (its ports, the mounted folders).
// Everything else is what is shipped: a value that is no longer in it is an
// error, not a shrug.
func sample(name string, changes []change) (string, error) {
	pins, err := tools.Pins()
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(filepath.Join(pins, "..", "..", "deploy", "envoy", name))
	if err != nil {
		return "", fmt.Errorf("reading a sample: %w", err)
	}
	text := string(b)
	for _, c := range changes {
		if n := strings.Count(text, c.from); n != c.times {
			return "", fmt.Errorf("changing the sample %s: %q stands %d times in it, want %d", name, c.from, n, c.times)
		}
		text = strings.ReplaceAll(text, c.from, c.to)
	}
	return text, nil
}

func (e *Envoy) changes() ([]change, error) {
	socket := func(address string) (string, error) {
		host, port, err := net.SplitHostPort(address)
		return fmt.Sprintf("{ address: %s, port_value: %s }", host, port), err
	}
	peer, err := socket(e.cfg.Peer)
	if err != nil {
		return nil, fmt.Errorf("reading the peer's address: %w", err)
	}
	app, err := socket(e.cfg.App)
	if err != nil {
		return nil, fmt.Errorf("reading the application's address: %w", err)
	}
	server, err := socket(e.cfg.Hallmark)
	if err != nil {
		return nil, fmt.Errorf("reading Hallmark's address: %w", err)
	}
	changes := []change{
		{"id: sidecar\n", "id: " + e.cfg.NodeID + "\n", 1},
		{"{ address: 127.0.0.1, port_value: 15000 }", "{ address: 127.0.0.1, port_value: 0 }", 1},
		{"{ address: 127.0.0.1, port_value: 15001 }", fmt.Sprintf("{ address: 127.0.0.1, port_value: %d }", e.outbound.Number()), 1},
		{"{ address: 0.0.0.0, port_value: 15006 }", fmt.Sprintf("{ address: 127.0.0.1, port_value: %d }", e.inbound.Number()), 1},
		{"{ address: 127.0.0.1, port_value: 8080 }", app, 1},
		{"{ address: server.default.svc, port_value: 15006 }", peer, 1},
		{`exact: "spiffe://cluster.local/ns/default/sa/client"`, fmt.Sprintf("exact: %q", e.cfg.Caller), 1},
		{`exact: "spiffe://cluster.local/ns/default/sa/server"`, fmt.Sprintf("exact: %q", e.cfg.Server), 1},
	}
	switch e.cfg.Sample {
	case EnvoyGRPC:
		return append(changes,
			change{"{ address: hallmark.hallmark-system.svc, port_value: 15012 }", server, 1},
			change{"path: /etc/envoy/token.yaml", "path: " + e.file("token.yaml"), 1},
			change{"path: /etc/envoy/trust.yaml", "path: " + e.file("trust.yaml"), 1},
		), nil
	case GoogleGRPC:
		return append(changes,
			change{"target_uri: dns:///hallmark.hallmark-system.svc:15012", "target_uri: dns:///" + e.cfg.Hallmark, 1},
			change{"filename: /var/run/secrets/hallmark/bundle.pem", "filename: " + e.cfg.Bundle, 1},
			change{"filename: /var/run/secrets/tokens/istio-token", "filename: " + e.tokenFile(), 1},
		), nil
	}
	return nil, fmt.Errorf("there is no sample %q", e.cfg.Sample)
}
