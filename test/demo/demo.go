package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/hallmark-ca/hallmark/test/bench/echo"
	"github.com/hallmark-ca/hallmark/test/bench/envoy"
	"github.com/hallmark-ca/hallmark/test/bench/mesh"
	"github.com/hallmark-ca/hallmark/test/bench/pods"
	"github.com/hallmark-ca/hallmark/test/bench/registry"
	"github.com/hallmark-ca/hallmark/test/sign"
	"github.com/hallmark-ca/hallmark/test/tools"
)

// demo is what is on the stage.
type demo struct {
	screen *screen
	dir    string
	life   context.Context // of everything that is started
	mesh   *mesh.Mesh
	app    *echo.Server

	pods   map[string]*mesh.Pod
	images map[string]registry.Image
	envoys map[string]*envoy.Envoy
}

func (d *demo) close() {
	if d.mesh != nil {
		d.mesh.Close()
	}
	if d.app != nil {
		d.app.Close()
	}
}

func (d *demo) scene(context.Context) error {
	for _, t := range tools.Table {
		if t.Demo {
			if _, err := tools.Path(t.Name); err != nil {
				return err
			}
		}
	}
	var err error
	d.mesh, err = mesh.New(d.life, mesh.Config{Dir: d.dir, Namespace: "demo", Progress: d.screen.doing})
	if err != nil {
		return err
	}
	api, _ := tools.Find("kube-apiserver")
	d.screen.saw("etcd, kube-apiserver %s and an OCI registry run, on 127.0.0.1 only", api.Version)
	return nil
}

// makePods makes the images and the pods that run them. The two formats in which
// cosign signs are both used.
func (d *demo) makePods(ctx context.Context) error {
	d.pods, d.images, d.envoys = map[string]*mesh.Pod{}, map[string]registry.Image{}, map[string]*envoy.Envoy{}
	for _, name := range []string{"client", "server", "intruder"} {
		img, err := d.mesh.Registry.Push(name, "v1")
		if err != nil {
			return err
		}
		switch name {
		case "client":
			_, err = sign.Bundle(ctx, img.Ref, d.mesh.Key)
		case "server":
			err = sign.Legacy(ctx, img.Ref, d.mesh.Key)
		}
		if err != nil {
			return err
		}
		if d.pods[name], err = d.mesh.Run(ctx, name, pods.Container{Image: img.String()}); err != nil {
			return err
		}
		d.images[name] = img
	}
	d.screen.saw("three pods run in namespace demo: client and server signed images, intruder an unsigned one")
	return nil
}

func (d *demo) serve(ctx context.Context) error {
	if err := d.mesh.Hallmark.Start(ctx); err != nil {
		return err
	}
	d.screen.saw("hallmark init, then hallmark serve: ready on %s, image gate: enforce", d.mesh.Hallmark.Addr())
	return nil
}

func (d *demo) startEnvoys(context.Context) error {
	var err error
	if d.app, err = echo.Start("server"); err != nil {
		return err
	}
	// From the shipped samples; both ways of reaching Hallmark are used.
	cfg := envoy.Config{Caller: d.mesh.Identity("client"), Server: d.mesh.Identity("server"), Sample: envoy.GoogleGRPC, App: d.app.Addr()}
	if d.envoys["server"], err = d.pods["server"].Envoy(d.life, cfg); err != nil {
		return err
	}
	cfg.Sample, cfg.App, cfg.Peer = envoy.EnvoyGRPC, "", d.envoys["server"].Inbound()
	for _, name := range []string{"client", "intruder"} {
		if d.envoys[name], err = d.pods[name].Envoy(d.life, cfg); err != nil {
			return err
		}
	}
	d.screen.saw("an Envoy for each pod, with the pod's token and Hallmark's roots; no key, no certificate")
	return nil
}

func (d *demo) identities(ctx context.Context) error {
	for _, name := range []string{"client", "server"} {
		id, err := d.envoys[name].AwaitIdentity(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if want := d.pods[name].Identity(); id.ID != want {
			return fmt.Errorf("%s: its Envoy is %s, want %s", name, id.ID, want)
		}
		d.screen.saw("%s's Envoy is %s, until %s, by %q", name, id.ID, id.Leaf.NotAfter.Local().Format(time.DateTime), id.Leaf.Issuer.String())
	}
	return nil
}

func (d *demo) talk(ctx context.Context) error {
	body, err := d.envoys["client"].Call(ctx, "/")
	if err != nil {
		return err
	}
	var a echo.Answer
	if err := json.Unmarshal(body, &a); err != nil {
		return fmt.Errorf("reading the service's answer: %w", err)
	}
	want := echo.Answer{Service: "server", Peer: d.mesh.Identity("client"), Self: d.mesh.Identity("server")}
	if a != want {
		return fmt.Errorf("the service answered %+v, want %+v", a, want)
	}
	d.screen.saw("client → Envoy → mutual TLS → Envoy → server: 200, the server saw peer %s", a.Peer)
	return nil
}

func (d *demo) intruder(ctx context.Context) error {
	e := d.envoys["intruder"]
	refusals, err := d.refused(ctx, e, 1)
	if err != nil {
		return err
	}
	if id, err := e.Identity(ctx); err == nil {
		return fmt.Errorf("the intruder has an identity: %s", id.ID)
	} else if !errors.Is(err, envoy.ErrNoIdentity) {
		return err
	}
	state, err := e.State(ctx)
	if err != nil {
		return err
	}
	if state != "PRE_INITIALIZING" {
		return fmt.Errorf("the intruder's Envoy is %s: it has something to serve with", state)
	}
	served := d.app.Served()
	if body, err := e.Call(ctx, "/"); err == nil || d.app.Served() != served {
		return fmt.Errorf("the intruder's call was not refused: %s", body)
	}
	d.screen.saw("the intruder's Envoy gets nothing, and its port stays closed:")
	d.screen.quote(refusals[0])
	return nil
}

// swap gives the client's pod another image while its Envoy holds streams.
func (d *demo) swap(ctx context.Context) error {
	e := d.envoys["client"]
	streams, err := e.Streams(ctx)
	if err != nil {
		return err
	}
	img, err := d.mesh.Unsigned("client")
	if err != nil {
		return err
	}
	start := time.Now()
	if _, err := pods.SetImage(ctx, d.mesh.Cluster.Client(), d.pods["client"].Pod, "app", img.String(), ""); err != nil {
		return err
	}
	refusals, err := d.refused(ctx, e, 1)
	if err != nil {
		return fmt.Errorf("ending the client's streams: %w", err)
	}
	took := time.Since(start)
	if took > 5*time.Second {
		return fmt.Errorf("the client's streams ended after %s: that is not at once", took)
	}
	if !strings.Contains(refusals[0], img.Ref.DigestStr()) {
		return fmt.Errorf("the refusal does not name the new image: %s", refusals[0])
	}
	d.screen.saw("the client's image is swapped for an unsigned one: its stream is ended %d ms later:", took.Milliseconds())
	d.screen.quote(refusals[0])
	// Each stream that there was has ended once: one more is of one that came back.
	refusals, err = d.refused(ctx, e, streams+1)
	if err != nil {
		return fmt.Errorf("refusing the client's return: %w", err)
	}
	d.screen.saw("its Envoy comes back at once, and is refused:")
	d.screen.quote(refusals[streams])
	return nil
}

// refused waits until the Envoy was told n times that its images are not signed,
// and returns what it was told.
func (d *demo) refused(ctx context.Context, e *envoy.Envoy, n int) ([]string, error) {
	var told []string
	err := e.Await(ctx, func(context.Context) error {
		var err error
		if told, err = e.Refusals(codes.PermissionDenied); err == nil && len(told) < n {
			err = fmt.Errorf("its Envoy was refused %d times, not yet %d", len(told), n)
		}
		return err
	})
	for _, text := range told {
		if !strings.Contains(text, "ImageUnsigned") {
			return nil, fmt.Errorf("refused, but for another reason: %s", text)
		}
	}
	return told, err
}
