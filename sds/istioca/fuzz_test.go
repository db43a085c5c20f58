package istioca_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"istio.io/api/security/v1alpha1"

	"github.com/hallmark-ca/hallmark/attest/attesttest"
	"github.com/hallmark-ca/hallmark/sds/ra"
	"github.com/hallmark-ca/hallmark/sds/ra/ratest"
)

// oneCall is the server's side of one call, without a network.
type oneCall struct {
	grpc.ServerStream
	ctx    context.Context
	body   []byte
	answer ra.Encoded
}

func (c *oneCall) Context() context.Context { return c.ctx }
func (c *oneCall) RecvMsg(m any) error      { m.(ra.Decoder).Decode(c.body); return nil }
func (c *oneCall) SendMsg(m any) error      { c.answer = m.(ra.Encoded); return nil }

// registry keeps the one method of the service.
type registry struct{ handler grpc.StreamHandler }

func (r *registry) RegisterService(desc *grpc.ServiceDesc, _ any) {
	r.handler = desc.Streams[0].Handler
}

// FuzzCreateCertificate sends any bytes as the request of an honest pod. Either
// they are refused as invalid or as another's identity, or a certificate for
// the pod's own identity comes back.
func FuzzCreateCertificate(f *testing.F) {
	w := ratest.New(f, ratest.Config{RA: func(c *ra.Config) { c.CallerRate, c.CallerBurst = 1e9, 1e9 }})
	handler := handlerOf(f, w)
	token := w.Cluster.Add(attesttest.Pod("shop", "web-1", "default", image))
	ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs("authorization", "Bearer "+token))
	identity := w.Identity(f, "shop", "default")
	f.Fuzz(func(t *testing.T, body []byte) {
		call := &oneCall{ctx: ctx, body: body}
		if err := handler(nil, call); err != nil {
			if code := status.Code(ra.Status(err)); code != codes.InvalidArgument && code != codes.Unauthenticated {
				t.Fatalf("refused by %v", err)
			}
			return
		}
		var whole []byte
		for _, piece := range call.answer {
			whole = append(whole, piece...)
		}
		var answer v1alpha1.IstioCertificateResponse
		if err := proto.Unmarshal(whole, &answer); err != nil {
			t.Fatal(err)
		}
		leaf := parse(t, answer.GetCertChain()[0])[0]
		if len(leaf.URIs) != 1 || leaf.URIs[0].String() != identity.String() || leaf.IsCA || time.Until(leaf.NotAfter) > 24*time.Hour {
			t.Fatalf("got %v until %s, CA %v", leaf.URIs, leaf.NotAfter, leaf.IsCA)
		}
	})
}
