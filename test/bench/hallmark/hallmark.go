// Package hallmark runs the product as its users do: the program built from the
// checkout, `hallmark init`, a changed configuration, `hallmark serve` as a
// process of its own, and then its metrics, readiness, log and ledger, read
// through HTTP, files and the command line. Nothing here imports the product.
//
// A server can be killed and started again at the same addresses with the same
// state. Its methods may be called concurrently, but for Start, Kill, Stop and
// Close.
package hallmark

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/hallmark-ca/hallmark/test/bench/port"
	"github.com/hallmark-ca/hallmark/test/bench/proc"
)

const (
	// ServerName is the name in the server's own certificate that clients check.
	ServerName = "hallmark.hallmark-system.svc"
	// TrustDomain is that of every server here.
	TrustDomain = "cluster.local"

	startWithin = 60 * time.Second
	stopWithin  = 20 * time.Second
)

// Config says what to found.
type Config struct {
	Dir        string // an existing directory, for state and logs
	Kubeconfig string // of the account that the server runs as
	Images     string // image gate: disabled, audit or enforce
	Policies   string // folder of ClusterImagePolicy files
	// Registries ("127.0.0.1:port") are spoken to without TLS, at a loopback
	// address.
	Registries []string
	// Settings change the configuration that init wrote: path ("attest.reviewCache")
	// to value.
	Settings map[string]any
}

// Server is a state directory and, between Start and Kill or Stop, the process
// that serves from it.
type Server struct {
	cfg     Config
	binary  string
	mesh    *port.Port
	metrics *port.Port
	life    context.Context
	end     context.CancelFunc
	process *proc.Process
	http    *http.Client
}

// New builds the program, founds an authority with `hallmark init` and sets the
// configuration. It starts nothing; Close must be called.
func New(ctx context.Context, cfg Config) (*Server, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("founding an authority: %w", err)
	}
	cfg.Dir = dir
	s := &Server{cfg: cfg, http: &http.Client{Timeout: 10 * time.Second}}
	s.life, s.end = context.WithCancel(ctx)
	if err := s.found(ctx); err != nil {
		s.Close()
		return nil, fmt.Errorf("founding an authority: %w", err)
	}
	return s, nil
}

func (s *Server) found(ctx context.Context) error {
	var err error
	if s.binary, err = Binary(ctx); err != nil {
		return err
	}
	for _, p := range []**port.Port{&s.mesh, &s.metrics} {
		if *p, err = port.Reserve(); err != nil {
			return err
		}
	}
	_, err = s.run(ctx, "init", "--state", s.State(), "--trust-domain", TrustDomain, "--kubeconfig", s.cfg.Kubeconfig,
		"--mesh-listen", s.mesh.Addr(), "--mesh-ip", "127.0.0.1", "--metrics-listen", s.metrics.Addr(),
		"--images", s.cfg.Images, "--policies", s.cfg.Policies)
	if err != nil {
		return err
	}
	settings := map[string]any{"images.registries.insecure": s.cfg.Registries, "images.registries.allowPrivate": s.cfg.Registries}
	for path, value := range s.cfg.Settings {
		settings[path] = value
	}
	return s.Set(settings)
}

// Set changes settings in the configuration file, which a later Start reads.
func (s *Server) Set(settings map[string]any) error {
	file := filepath.Join(s.State(), "hallmark.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("changing the configuration: %w", err)
	}
	var all map[string]any
	if err := yaml.Unmarshal(text, &all); err != nil {
		return fmt.Errorf("changing the configuration: %w", err)
	}
	for path, value := range settings {
		room, words := all, strings.Split(path, ".")
		for _, w := range words[:len(words)-1] {
			room, _ = room[w].(map[string]any) // a nil map has nothing in it
		}
		if room == nil {
			return fmt.Errorf("changing the configuration: there is no room for %s", path)
		}
		room[words[len(words)-1]] = value // hallmark itself refuses what it does not know
	}
	if text, err = yaml.Marshal(all); err != nil {
		return fmt.Errorf("changing the configuration: %w", err)
	}
	return os.WriteFile(file, text, 0o600)
}

// Start runs `hallmark serve` and returns when it is ready.
func (s *Server) Start(ctx context.Context) error {
	if err := s.Launch(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	return s.process.Await(ctx, s.Ready)
}

// Launch is Start without the wait.
func (s *Server) Launch() error {
	if s.process != nil {
		return errors.New("starting hallmark: it runs already")
	}
	p, err := proc.Start(s.life, proc.Config{
		Path: s.binary, Args: []string{"serve", "--state", s.State()}, Log: s.LogFile(), Grace: stopWithin,
	})
	if err != nil {
		return err
	}
	s.process = p
	return nil
}

// Ready is nil if /readyz says so.
func (s *Server) Ready(ctx context.Context) error {
	body, status, err := s.get(ctx, "/readyz")
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("not ready: %s", strings.Join(strings.Fields(string(body)), " "))
	}
	return nil
}

func (s *Server) get(ctx context.Context, path string) (body []byte, status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.metrics.Addr()+path, nil)
	if err != nil {
		return nil, 0, err
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	return body, resp.StatusCode, err
}

// Kill ends the process as `kill -9` does.
func (s *Server) Kill() {
	if s.process != nil {
		s.process.Kill()
		s.process = nil
	}
}

// Stop ends the process by SIGTERM and returns how it ended; nil is exit code 0.
func (s *Server) Stop() error {
	if s.process == nil {
		return nil
	}
	s.process.Stop()
	err := s.process.Err()
	s.process = nil
	return err
}

// Close kills the process and gives the addresses back. The directory stays.
func (s *Server) Close() {
	s.end()
	s.Kill()
	for _, p := range []*port.Port{s.mesh, s.metrics} {
		if p != nil {
			p.Close()
		}
	}
	s.http.CloseIdleConnections()
}

// Addr is that of the mesh port, "127.0.0.1:port".
func (s *Server) Addr() string { return s.mesh.Addr() }

// MetricsAddr is that of metrics and health.
func (s *Server) MetricsAddr() string { return s.metrics.Addr() }

// State is the state directory.
func (s *Server) State() string { return filepath.Join(s.cfg.Dir, "state") }

// Bundle is the PEM file of the roots that the server writes for its clients.
func (s *Server) Bundle() string { return filepath.Join(s.State(), "bundle.pem") }

// LogFile is what the server says: JSON lines, of all its processes.
func (s *Server) LogFile() string { return filepath.Join(s.cfg.Dir, "hallmark.log") }

// Program is the path of the program that runs.
func (s *Server) Program() string { return s.binary }

// Pid is the process id of the server that runs.
func (s *Server) Pid() int { return s.process.Pid() }

// Run runs another command of the product on the state directory and returns
// what it printed.
func (s *Server) Run(ctx context.Context, args ...string) ([]byte, error) {
	return s.run(ctx, append(args, "--state", s.State())...)
}

func (s *Server) run(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, s.binary, args...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("running hallmark %s: %w\n%s%s", strings.Join(args[:min(2, len(args))], " "), err, out.Bytes(), said.Bytes())
	}
	return out.Bytes(), nil
}

// Files lists the files of the state directory, each with its size: what
// callers can make grow.
func (s *Server) Files() (map[string]int64, error) {
	sizes := map[string]int64{}
	err := filepath.Walk(s.State(), func(path string, info os.FileInfo, err error) error {
		if os.IsNotExist(err) {
			return nil // it went while we looked
		}
		if err == nil && info.Mode().IsRegular() {
			sizes[strings.TrimPrefix(path, s.State()+"/")] = info.Size()
		}
		return err
	})
	return sizes, err
}

// Grown says, in lines, which files are larger in after, or only there.
func Grown(before, after map[string]int64) []string {
	var lines []string
	for name, size := range after {
		if was, ok := before[name]; !ok || size > was {
			lines = append(lines, fmt.Sprintf("%s: %d bytes, %d before", name, size, was))
		}
	}
	sort.Strings(lines)
	return lines
}
