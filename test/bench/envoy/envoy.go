// Package envoy runs real Envoys from the samples that are shipped in
// deploy/envoy, with nothing changed but the values that the samples say are
// their reader's own. So what the tests run is what operators run.
//
// An Envoy's token lies as kubelet puts it: a link to a folder that is swapped
// as a whole. What an Envoy holds and says is read from its admin interface and
// its log. Methods may be called concurrently, but for Restart, Stop and Close.
package envoy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/hallmark-ca/hallmark/test/bench/port"
	"github.com/hallmark-ca/hallmark/test/bench/proc"
	"github.com/hallmark-ca/hallmark/test/tools"
)

// The shipped samples.
const (
	EnvoyGRPC  = "sidecar-envoy-grpc.yaml"  // the recommended way
	GoogleGRPC = "sidecar-google-grpc.yaml" // Google's gRPC client
)

const startWithin = 30 * time.Second

// Config says what a sidecar is beside.
type Config struct {
	Dir      string // an existing directory of its own
	Sample   string // "": EnvoyGRPC
	NodeID   string // what it calls itself; nobody believes it. "": "sidecar"
	Hallmark string // "127.0.0.1:port" of the mesh port
	Bundle   string // PEM file of Hallmark's roots
	Token    string // the pod's token
	Caller   string // SPIFFE ID that may call this one
	Server   string // SPIFFE ID of the service that this one calls
	Peer     string // where that service's sidecar takes calls; "": nowhere
	App      string // where this pod's application listens; "": nowhere
}

// nowhere is an address that refuses every connection.
const nowhere = "127.0.0.1:1"

// Envoy is a sidecar that runs, but between Stop and Restart.
type Envoy struct {
	cfg      Config
	binary   string
	outbound *port.Port
	inbound  *port.Port
	process  *proc.Process
	admin    string
	life     context.Context
	end      context.CancelFunc
	http     *http.Client
}

// Start runs an Envoy and returns when its admin interface answers; it may then
// still wait for its identity ([Envoy.AwaitIdentity]). Close must be called.
func Start(ctx context.Context, cfg Config) (*Envoy, error) {
	e := &Envoy{cfg: cfg, http: &http.Client{Timeout: 10 * time.Second}}
	for _, d := range []struct {
		field *string
		value string
	}{{&e.cfg.Sample, EnvoyGRPC}, {&e.cfg.NodeID, "sidecar"}, {&e.cfg.Peer, nowhere}, {&e.cfg.App, nowhere}} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	e.life, e.end = context.WithCancel(ctx)
	if err := e.prepare(); err != nil {
		e.Close()
		return nil, fmt.Errorf("starting an Envoy: %w", err)
	}
	if err := e.Restart(ctx); err != nil {
		e.Close()
		return nil, err
	}
	return e, nil
}

func (e *Envoy) prepare() error {
	var err error
	if e.cfg.Dir, err = filepath.Abs(e.cfg.Dir); err != nil {
		return err
	}
	if e.binary, err = tools.Path("envoy"); err != nil {
		return err
	}
	for _, p := range []**port.Port{&e.outbound, &e.inbound} {
		if *p, err = port.Reserve(); err != nil {
			return err
		}
	}
	if err := e.SetToken(e.cfg.Token); err != nil {
		return err
	}
	return e.configure()
}

// Restart runs an Envoy that was stopped, at the same addresses.
func (e *Envoy) Restart(ctx context.Context) error {
	if e.process != nil {
		return errors.New("starting an Envoy: it runs already")
	}
	at := e.file("admin")
	if err := os.Remove(at); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("starting an Envoy: %w", err)
	}
	p, err := proc.Start(e.life, proc.Config{Path: e.binary, Log: e.LogFile(), Args: []string{
		"-c", e.file("envoy.yaml"), "--admin-address-path", at, "--concurrency", "1", "--disable-hot-restart", "--log-level", "info",
	}})
	if err != nil {
		return err
	}
	e.process = p
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	return p.Await(ctx, func(ctx context.Context) error {
		address, err := os.ReadFile(at)
		if err != nil {
			return err
		}
		e.admin = strings.TrimSpace(string(address))
		_, err = e.Admin(ctx, "/server_info")
		return err
	})
}

// Stop kills the Envoy. Its addresses stay reserved, its directory stays.
func (e *Envoy) Stop() {
	if e.process != nil {
		e.process.Kill()
		e.process = nil
	}
}

// Pause stops the process as it is: its connections stay, and it answers nothing.
func (e *Envoy) Pause() { e.process.Pause() }

// Resume ends a Pause.
func (e *Envoy) Resume() { e.process.Resume() }

// Close is Stop for good.
func (e *Envoy) Close() {
	e.end()
	e.Stop()
	for _, p := range []*port.Port{e.outbound, e.inbound} {
		if p != nil {
			p.Close()
		}
	}
	e.http.CloseIdleConnections()
}

// Outbound is where the pod's application sends plain HTTP.
func (e *Envoy) Outbound() string { return e.outbound.Addr() }

// Inbound is where other sidecars call.
func (e *Envoy) Inbound() string { return e.inbound.Addr() }

// AdminAddr is that of the admin interface.
func (e *Envoy) AdminAddr() string { return e.admin }

// LogFile is what the Envoy says, all its processes.
func (e *Envoy) LogFile() string { return e.file("envoy.log") }

// Said returns the lines of the log that contain the text.
func (e *Envoy) Said(text string) ([]string, error) {
	b, err := os.ReadFile(e.LogFile())
	if err != nil {
		return nil, fmt.Errorf("reading an Envoy's log: %w", err)
	}
	var lines []string
	for line := range strings.SplitSeq(string(b), "\n") {
		if strings.Contains(line, text) {
			lines = append(lines, line)
		}
	}
	return lines, nil
}

// Streams counts the SDS streams that the Envoy has open: one for each secret.
func (e *Envoy) Streams(ctx context.Context) (int, error) {
	stats, err := e.Stats(ctx, ".control_plane.connected_state")
	if err != nil {
		return 0, err
	}
	n := 0
	for name, value := range stats {
		if strings.HasPrefix(name, "sds.") {
			n += int(value)
		}
	}
	return n, nil
}

// Refusals returns what the Envoy was told, time after time, when a stream of
// its own was ended or refused with the code.
func (e *Envoy) Refusals(code codes.Code) ([]string, error) {
	mark := fmt.Sprintf(" closed: %d, ", code)
	lines, err := e.Said(mark)
	if err != nil {
		return nil, err
	}
	for i, line := range lines {
		_, text, _ := strings.Cut(line, mark)
		lines[i] = strings.TrimSuffix(text, "{via_upstream}")
	}
	return lines, nil
}

// Await asks ready until it returns nil, the Envoy dies or ctx ends.
func (e *Envoy) Await(ctx context.Context, ready func(context.Context) error) error {
	return e.process.Await(ctx, ready)
}

// Admin returns what the admin interface answers to a GET.
func (e *Envoy) Admin(ctx context.Context, path string) ([]byte, error) {
	return e.get(ctx, "http://"+e.admin+path)
}

// Call sends a request as the pod's application would, and returns the answer's
// body. A status other than 200 is an error that says it.
func (e *Envoy) Call(ctx context.Context, path string) ([]byte, error) {
	return e.get(ctx, "http://"+e.Outbound()+path)
}

func (e *Envoy) get(ctx context.Context, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := e.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d: %.300s", resp.StatusCode, strings.TrimSpace(string(body)))
	}
	return body, nil
}

// Stats returns the counters and gauges whose names contain the text.
func (e *Envoy) Stats(ctx context.Context, containing string) (map[string]int64, error) {
	b, err := e.Admin(ctx, "/stats?usedonly")
	if err != nil {
		return nil, fmt.Errorf("reading an Envoy's stats: %w", err)
	}
	stats := map[string]int64{}
	for line := range strings.SplitSeq(string(b), "\n") {
		name, value, ok := strings.Cut(line, ": ")
		if !ok || !strings.Contains(name, containing) {
			continue
		}
		if n, err := strconv.ParseInt(value, 10, 64); err == nil { // the rest are histograms
			stats[name] = n
		}
	}
	return stats, nil
}

// SetToken puts the token in place as kubelet does: into a new folder, to which
// a link is swapped.
func (e *Envoy) SetToken(token string) error {
	if err := os.MkdirAll(e.tokenDir(), 0o700); err != nil {
		return fmt.Errorf("setting a token: %w", err)
	}
	folder, err := os.MkdirTemp(e.tokenDir(), "..token-")
	if err != nil {
		return fmt.Errorf("setting a token: %w", err)
	}
	data, next := filepath.Join(e.tokenDir(), "..data"), filepath.Join(e.tokenDir(), "..data_tmp")
	old, err := os.Readlink(data)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("setting a token: %w", err)
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(folder, tokenName), []byte(token), 0o600),
		os.Symlink(filepath.Base(folder), next),
		os.Rename(next, data),
	); err != nil {
		return fmt.Errorf("setting a token: %w", err)
	}
	if old != "" {
		return os.RemoveAll(filepath.Join(e.tokenDir(), old))
	}
	return os.Symlink(filepath.Join("..data", tokenName), e.tokenFile())
}

const tokenName = "istio-token"

func (e *Envoy) tokenDir() string  { return e.file("tokens") }
func (e *Envoy) tokenFile() string { return filepath.Join(e.tokenDir(), tokenName) }

func (e *Envoy) file(name string) string { return filepath.Join(e.cfg.Dir, name) }
