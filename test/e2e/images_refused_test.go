package e2e_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"

	"github.com/hallmark-ca/hallmark/test/bench/mesh"
	"github.com/hallmark-ca/hallmark/test/bench/pods"
	"github.com/hallmark-ca/hallmark/test/bench/registry"
	"github.com/hallmark-ca/hallmark/test/sign"
)

// imageCase is a pod that gets no identity, or (without a reason) one that does.
type imageCase struct {
	name   string
	reason string
	// names are what the answer must say beside the reason and the pod.
	names []string
	// containers makes the images and says what runs.
	containers func(*scene) []pods.Container
}

func app(image string) pods.Container { return pods.Container{Image: image} }

var imageCases = []imageCase{
	{name: "all signed", containers: func(s *scene) []pods.Container {
		return []pods.Container{
			app(s.signed("app").String()), {Name: "second", Image: s.signed("app").String()},
			{Name: "setup", Kind: pods.Init, Image: s.signed("app").String()}, {Name: "proxy", Kind: pods.Sidecar, Image: s.signed("app").String()},
		}
	}},
	{name: "one unsigned among several", reason: "ImageUnsigned", names: []string{"container third"}, containers: func(s *scene) []pods.Container {
		return []pods.Container{app(s.signed("app").String()), {Name: "second", Image: s.signed("app").String()}, {Name: "third", Image: s.unsigned("app").String()}}
	}},
	{name: "an unsigned init container", reason: "ImageUnsigned", names: []string{"container setup"}, containers: func(s *scene) []pods.Container {
		return []pods.Container{app(s.signed("app").String()), {Name: "setup", Kind: pods.Init, Image: s.unsigned("app").String()}}
	}},
	{name: "an unsigned sidecar", reason: "ImageUnsigned", names: []string{"container proxy"}, containers: func(s *scene) []pods.Container {
		return []pods.Container{app(s.signed("app").String()), {Name: "proxy", Kind: pods.Sidecar, Image: s.unsigned("app").String()}}
	}},
	{name: "signed by a wrong key", reason: "ImageSignatureInvalid", containers: func(s *scene) []pods.Container {
		stranger, err := sign.NewKey()
		must(s.t, err)
		img := s.unsigned("app")
		s.signImage(img, stranger)
		return []pods.Container{app(img.String())}
	}},
	{name: "a signature of another digest", reason: "ImageSignatureInvalid", containers: func(s *scene) []pods.Container {
		good, bad := s.signed("app"), s.unsigned("app")
		s.signImage(bad, s.Key, sign.OfDigest(hash(s.t, good)))
		return []pods.Container{app(bad.String())}
	}},
	{name: "a corrupt signature", reason: "ImageSignatureInvalid", containers: func(s *scene) []pods.Container {
		img := s.unsigned("app")
		s.signImage(img, s.Key, sign.Corrupt())
		return []pods.Container{app(img.String())}
	}},
	{name: "a broken signature beside a good one", containers: func(s *scene) []pods.Container {
		img := s.unsigned("app")
		s.signImage(img, s.Key, sign.Corrupt())
		s.signImage(img, s.Key)
		return []pods.Container{app(img.String())}
	}},
	{name: "a tag that moved after signing", reason: "ImageUnsigned", containers: func(s *scene) []pods.Container {
		tag, _, moved := s.movedTag()
		return []pods.Container{{Image: tag, ImageID: moved.String()}}
	}},
	{name: "no policy", reason: "ImageNoPolicy", names: []string{"registry.example.com/elsewhere"}, containers: func(*scene) []pods.Container {
		return []pods.Container{app("registry.example.com/elsewhere@sha256:" + strings.Repeat("a", 64))}
	}},
	{name: "an imageID that is another digest", reason: "ImageIDUnknown", containers: func(s *scene) []pods.Container {
		return []pods.Container{{Image: s.signed("app").String(), ImageID: s.unsigned("app").String()}}
	}},
	{name: "an imageID that is verified by itself", containers: func(s *scene) []pods.Container {
		return []pods.Container{{Image: s.signed("app").String(), ImageID: s.signed("app").String()}}
	}},
	{name: "an imageID that the signed index lists", containers: func(s *scene) []pods.Container {
		idx, children, err := s.Registry.PushIndex("app", "multi", "linux/amd64", "linux/arm64")
		must(s.t, err)
		s.signImage(registry.Image{Ref: idx}, s.Key)
		return []pods.Container{{Image: idx.String(), ImageID: children[0].String()}}
	}},
	{name: "an imageID that the signed index does not list", reason: "ImageIDUnknown", containers: func(s *scene) []pods.Container {
		idx, _, err := s.Registry.PushIndex("app", "multi", "linux/amd64")
		must(s.t, err)
		s.signImage(registry.Image{Ref: idx}, s.Key)
		return []pods.Container{{Image: idx.String(), ImageID: s.unsigned("app").String()}}
	}},
	{name: "a bare imageID, the signed image's configuration", containers: func(s *scene) []pods.Container {
		img := s.signed("app")
		return []pods.Container{{Image: img.String(), ImageID: img.Config.String()}}
	}},
	{name: "a bare imageID of something else", reason: "ImageIDUnknown", containers: func(s *scene) []pods.Container {
		return []pods.Container{{Image: s.signed("app").String(), ImageID: s.unsigned("app").Config.String()}}
	}},
}

// No identity for a pod with an image that does not pass, whatever stands beside
// it: refused with its own reason at both doors, naming pod and image, and on
// record.
func TestImagesRefused(t *testing.T) {
	s := newScene(t, 3*time.Minute, mesh.Config{})
	for i, c := range imageCases {
		t.Run(c.name, func(t *testing.T) {
			sub := *s
			sub.t = t
			pod := sub.run(fmt.Sprintf("case-%d", i), c.containers(&sub)...)
			token := sub.token(pod)
			for _, door := range doors {
				before := sub.metrics().Refusals(c.reason)
				err := sub.ask(door, pod, token)
				if c.reason == "" {
					if err != nil {
						t.Errorf("%s: refused with %v", door, err)
					}
					continue
				}
				wantDenied(t, err, codes.PermissionDenied, append(c.names, c.reason, pod.Namespace+"/"+pod.Name)...)
				if d := sub.metrics().Refusals(c.reason) - before; d != 1 {
					t.Errorf("%s: counted %v times under %s", door, d, c.reason)
				}
				sub.recordedFor(pod, door, c.reason)
			}
			if c.reason != "" {
				sub.issuedNothing(pod)
			}
		})
	}
}

// Without an imageID yet, a tag is what it points to now.
func TestTagMovedBeforeItRuns(t *testing.T) {
	s := newScene(t, time.Minute, mesh.Config{})
	tag, signed, _ := s.movedTag()
	account, err := s.Account(s.ctx, "pending")
	must(t, err)
	created, err := pods.Create(s.ctx, s.Cluster.Client(), pods.Spec{
		Namespace: s.Namespace, Name: "pending", Account: account.Name, Node: s.Node.Name, Containers: []pods.Container{app(tag)},
	})
	must(t, err)
	_, err = pods.Report(s.ctx, s.Cluster.Client(), created, corev1.PodPending, app(tag))
	must(t, err)
	pod := s.As(created, account)
	token := s.token(pod)
	_, err = s.create(pod, token)
	wantDenied(t, err, codes.PermissionDenied, "ImageUnsigned")
	// Moved back, it passes: what counted was where it points.
	must(t, s.Registry.Tag(signed.Ref, "release"))
	s.eventually(30*time.Second, func() error {
		_, err := s.create(pod, token)
		return err
	})
}

// Names are the spec's: what passes under one name passes under no other.
func TestSameDigestUnderAStricterName(t *testing.T) {
	s := newScene(t, time.Minute, mesh.Config{})
	lax, err := sign.NewKey()
	must(t, err)
	must(t, s.SetPolicy("signed", mesh.Policy("strict", s.Registry.Addr()+"/strict/**", s.Key)+
		"---\n"+mesh.Policy("lax", s.Registry.Addr()+"/lax/**", lax)))
	img := s.unsigned("lax/app")
	s.signImage(img, lax)
	copied := s.copyTo(img, "strict/app")
	s.signImage(copied, lax)

	passes := s.run("lax", app(img.String()))
	token := s.token(passes)
	s.eventually(30*time.Second, func() error { // until the folder was read again
		_, err := s.create(passes, token)
		return err
	})
	for name, c := range map[string]pods.Container{
		"strict":         app(copied.String()),
		"strict-by-lax":  {Image: copied.String(), ImageID: img.String()},
		"strict-by-bare": {Image: copied.String(), ImageID: img.Config.String()},
	} {
		pod := s.run(name, c)
		_, err := s.create(pod, s.token(pod))
		wantDenied(t, err, codes.PermissionDenied, "ImageSignatureInvalid", "strict/app")
	}
}

// audit gives the identity, and says what enforce would do.
func TestAuditSaysWouldDeny(t *testing.T) {
	s := newScene(t, time.Minute, mesh.Config{Images: "audit"})
	img := s.unsigned("app")
	pod := s.run("caller", app(img.String()))
	for _, door := range doors {
		if err := s.ask(door, pod, s.token(pod)); err != nil {
			t.Errorf("%s: audit refuses: %v", door, err)
		}
		s.eventually(5*time.Second, func() error {
			entries, err := s.Hallmark.Query(s.ctx, "--pod", s.Namespace+"/"+pod.Name)
			must(t, err)
			for _, e := range entries {
				if e.Issuance == nil || e.Issuance.Door != door {
					continue
				}
				if images := e.Issuance.Images; len(images) != 1 || images[0].Verdict != "would-deny" || images[0].Reason != "ImageUnsigned" || images[0].Digest != img.Ref.DigestStr() {
					return fmt.Errorf("the record says %+v of its images", images)
				}
				return nil
			}
			return errors.New("no issuance at this door is on record")
		})
	}
	if n := s.metrics().Refusals("ImageUnsigned"); n != 0 {
		t.Errorf("%v refusals were counted", n)
	}
}

// sign attaches a signature in both formats.
func (s *scene) signImage(img registry.Image, k *sign.Key, opts ...sign.Option) {
	s.t.Helper()
	_, err := sign.Bundle(s.ctx, img.Ref, k, opts...)
	must(s.t, err)
	must(s.t, sign.Legacy(s.ctx, img.Ref, k, opts...))
}

func hash(t *testing.T, img registry.Image) v1.Hash {
	t.Helper()
	h, err := v1.NewHash(img.Ref.DigestStr())
	must(t, err)
	return h
}

// movedTag is a tag that pointed to a signed image, and then moved.
func (s *scene) movedTag() (tag string, was, now registry.Image) {
	s.t.Helper()
	was, err := s.Registry.Push("app", "release")
	must(s.t, err)
	s.signImage(was, s.Key)
	now = s.unsigned("app")
	must(s.t, s.Registry.Tag(now.Ref, "release"))
	return s.Registry.Addr() + "/app:release", was, now
}

// copyTo puts the image into another repository.
func (s *scene) copyTo(img registry.Image, repo string) registry.Image {
	s.t.Helper()
	copied, err := s.Registry.Copy(img, repo)
	must(s.t, err)
	return copied
}

// recordedFor checks that the pod's refusal is in the ledger.
func (s *scene) recordedFor(p *mesh.Pod, door, reason string) {
	s.t.Helper()
	s.eventually(10*time.Second, func() error {
		entries, err := s.Hallmark.Query(s.ctx, "--pod", string(p.UID))
		must(s.t, err)
		for _, e := range entries {
			if r := e.Refusal; r != nil && r.Reason == reason && r.Door == door && r.Identity == p.Identity() {
				return nil
			}
		}
		return fmt.Errorf("no refusal for %s at %s is on record: %v", reason, door, entries)
	})
}

func (s *scene) issuedNothing(p *mesh.Pod) {
	s.t.Helper()
	entries, err := s.Hallmark.Query(s.ctx, "--pod", string(p.UID))
	must(s.t, err)
	for _, e := range entries {
		if e.Issuance != nil {
			s.t.Errorf("a certificate is on record: %+v", e.Issuance)
		}
	}
}
