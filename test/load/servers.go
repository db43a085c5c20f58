package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hallmark-ca/hallmark/test/bench/caller"
	"github.com/hallmark-ca/hallmark/test/bench/hallmark"
	"github.com/hallmark-ca/hallmark/test/bench/mesh"
	"github.com/hallmark-ca/hallmark/test/bench/pods"
	"github.com/hallmark-ca/hallmark/test/bench/port"
	"github.com/hallmark-ca/hallmark/test/bench/proc"
	"github.com/hallmark-ca/hallmark/test/tools"
)

// account is that of all the pods: they share an identity and an image.
const account = "caller"

// servers starts what is driven, or names what runs already. end ends what was
// started, also after an error.
func (o options) servers(ctx context.Context, dir string, notes io.Writer) (all []*server, end func(), err error) {
	if o.target != "" {
		s, err := o.given()
		return []*server{s}, func() {}, err
	}
	var ends []func()
	end = func() {
		for i := len(ends) - 1; i >= 0; i-- {
			ends[i]()
		}
	}
	m, err := mesh.New(ctx, mesh.Config{Dir: dir, Namespace: "load", Progress: func(what string) { fmt.Fprintln(notes, what) }})
	ends = append(ends, m.Close)
	if err != nil {
		return nil, end, err
	}
	fmt.Fprintln(notes, "starting hallmark")
	if err := m.Hallmark.Start(ctx); err != nil {
		return nil, end, err
	}
	fmt.Fprintf(notes, "making %d pods\n", o.tokens)
	tokens, err := makeTokens(ctx, m, o.tokens)
	if err != nil {
		return nil, end, err
	}
	cfg, err := caller.TLS(m.Hallmark.Bundle(), hallmark.ServerName)
	if err != nil {
		return nil, end, err
	}
	all = []*server{{name: "hallmark", addr: m.Hallmark.Addr(), tls: cfg, tokens: tokens, identity: m.Identity(account), pid: m.Hallmark.Pid()}}
	if !o.peer {
		return all, end, nil
	}
	fmt.Fprintln(notes, "starting istio-ca")
	peer, stop, err := startIstio(ctx, dir, tokens, m.Identity(account))
	ends = append(ends, stop)
	return append(all, peer), end, err
}

// given is the server that --target names.
func (o options) given() (*server, error) {
	cfg, err := caller.TLS(o.bundle, o.name)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(o.tokenFile)
	if err != nil {
		return nil, fmt.Errorf("reading tokens: %w", err)
	}
	s := &server{name: o.target, addr: o.target, tls: cfg, identity: o.identity, pid: o.pid}
	for line := range bytes.Lines(b) {
		if token := bytes.TrimSpace(line); len(token) > 0 && len(s.tokens) < mostTokens {
			s.tokens = append(s.tokens, string(token))
		}
	}
	if len(s.tokens) == 0 {
		return nil, fmt.Errorf("reading tokens: %s has none", o.tokenFile)
	}
	return s, nil
}

// makeTokens makes pods of one account that run one signed image, and returns
// their tokens.
func makeTokens(ctx context.Context, m *mesh.Mesh, n int) ([]string, error) {
	img, err := m.Signed(ctx, "app")
	if err != nil {
		return nil, err
	}
	tokens := make([]string, n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i := range tokens {
		g.Go(func() error {
			p, err := m.RunAs(ctx, fmt.Sprintf("caller-%d", i), account, pods.Container{Image: img.String()})
			if err != nil {
				return err
			}
			tokens[i], err = p.Token(ctx)
			return err
		})
	}
	return tokens, g.Wait()
}

func startIstio(ctx context.Context, dir string, tokens []string, identity string) (s *server, stop func(), err error) {
	stop = func() {}
	path, err := tools.Path("istio-ca")
	if err != nil {
		return nil, stop, err
	}
	dir = filepath.Join(dir, "istio")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, stop, err
	}
	at, err := port.Reserve()
	if err != nil {
		return nil, stop, err
	}
	p, err := proc.Start(ctx, proc.Config{Path: path, Log: filepath.Join(dir, "log"), Args: []string{"--listen", at.Addr(), "--dir", dir, "--identity", identity}})
	if err != nil {
		return nil, at.Close, err
	}
	stop = func() { p.Kill(); at.Close() }
	s = &server{name: "istio-ca", addr: at.Addr(), tokens: tokens, identity: identity, pid: p.Pid()}
	wait, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err = p.Await(wait, func(ctx context.Context) error {
		var err error
		if s.tls, err = caller.TLS(filepath.Join(dir, "bundle.pem"), "istiod.istio-system.svc"); err != nil {
			return err
		}
		return answers(ctx, s.addr, s.tls)
	})
	return s, stop, err
}

// answers tells whether a TLS server is there.
func answers(ctx context.Context, addr string, cfg *tls.Config) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return c.Close()
}
