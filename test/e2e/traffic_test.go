package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/hallmark-ca/hallmark/test/bench/echo"
	"github.com/hallmark-ca/hallmark/test/bench/envoy"
	"github.com/hallmark-ca/hallmark/test/bench/mesh"
)

// pair is two sidecars, a client's that calls a server's.
type pair struct {
	s              *scene
	client, server *envoy.Envoy
	clientPod      *mesh.Pod
	serverPod      *mesh.Pod
	app            *echo.Server
}

// newPair starts two sidecars that take their identity by the sample; tokens are
// the pods' own unless given.
func (s *scene) newPair(sample, clientToken, serverToken string, client, server *mesh.Pod) *pair {
	s.t.Helper()
	app, err := echo.Start("server")
	must(s.t, err)
	s.t.Cleanup(app.Close)
	p := &pair{s: s, clientPod: client, serverPod: server, app: app}
	cfg := envoy.Config{Sample: sample, Token: serverToken, Caller: client.Identity(), Server: server.Identity(), App: app.Addr()}
	p.server, err = server.Envoy(context.WithoutCancel(s.ctx), cfg)
	must(s.t, err)
	cfg.Token, cfg.App, cfg.Peer = clientToken, "", p.server.Inbound()
	p.client, err = client.Envoy(context.WithoutCancel(s.ctx), cfg)
	must(s.t, err)
	for _, e := range []*envoy.Envoy{p.server, p.client} {
		if _, err := e.AwaitIdentity(s.ctx); err != nil {
			s.t.Fatal(err)
		}
	}
	s.eventually(10*time.Second, p.call)
	return p
}

// call sends one request and checks who was seen to send it.
func (p *pair) call() error {
	body, err := p.client.Call(p.s.ctx, "/")
	if err != nil {
		return err
	}
	var a echo.Answer
	if err := json.Unmarshal(body, &a); err != nil {
		return err
	}
	if want := (echo.Answer{Service: "server", Peer: p.clientPod.Identity(), Self: p.serverPod.Identity()}); a != want {
		return fmt.Errorf("answered %+v, want %+v", a, want)
	}
	return nil
}

// traffic calls all the time until the returned function is called, which says
// how many calls there were, and every one that failed.
func (p *pair) traffic() (stop func() (calls int, failed []string)) {
	ctx, cancel := context.WithCancel(p.s.ctx)
	var wg sync.WaitGroup
	calls, failed := 0, []string(nil)
	wg.Go(func() {
		tick := time.NewTicker(25 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			calls++
			if err := p.call(); err != nil && ctx.Err() == nil {
				failed = append(failed, fmt.Sprintf("call %d: %v", calls, err))
			}
		}
	})
	return func() (int, []string) {
		cancel()
		wg.Wait()
		return calls, failed
	}
}
