package sds_test

import (
	"encoding/binary"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/hallmark-ca/hallmark/sds"
	"github.com/hallmark-ca/hallmark/sds/sdstest"
)

// lastNonce in a fuzzed request stands for the nonce of the last response, which
// no input can foresee.
const lastNonce = "last"

// FuzzStream plays requests as they may come: each is a length of two bytes and
// a DiscoveryRequest. Whatever comes, the server neither panics nor sends what
// it must not, and ends the stream with nothing but a refusal of the request.
func FuzzStream(f *testing.F) {
	for _, requests := range conversations() {
		f.Add(script(f, requests))
	}
	// Made once, so that what an input reaches depends on the input alone.
	m := newMint(f)
	svids := []*sds.SVID{m.svid(), m.svid()}
	bundle, made := m.bundle(), time.Now()
	now := func() time.Time { return made }
	f.Fuzz(func(t *testing.T, data []byte) {
		synctest.Test(t, func(t *testing.T) {
			src := newSource(m.identity)
			src.svid, src.bundle = svids[0], bundle
			server, _, _ := newServer(t, src, func(cfg *sds.Config) { cfg.Now = now })
			c := sdstest.Open(t, server, "good", now)
			for n := 0; len(data) >= 2 && n < 50; n++ {
				size := min(int(binary.BigEndian.Uint16(data)), len(data)-2)
				r := &discoveryv3.DiscoveryRequest{}
				if err := proto.Unmarshal(data[2:2+size], r); err != nil {
					break // gRPC refuses it
				}
				data = data[2+size:]
				if all := c.Responses(); r.GetResponseNonce() == lastNonce && len(all) > 0 {
					r.ResponseNonce = all[len(all)-1].GetNonce()
				}
				c.Put(r)
				synctest.Wait()
				if n%8 == 3 {
					src.set(func(s *source) { s.svid = svids[n/4%2] })
					synctest.Wait()
				}
			}
			if len(c.Responses()) > 50*2 {
				t.Errorf("%d responses", len(c.Responses()))
			}
			if code := status.Code(c.Err()); c.Ended() && code != codes.InvalidArgument && code != codes.ResourceExhausted {
				t.Errorf("the stream ended with %v", c.Err())
			}
			c.Cancel()
			<-c.Done()
		})
	})
}

// conversations are what real clients say, and some that are none.
func conversations() map[string][]*discoveryv3.DiscoveryRequest {
	node := &corev3.Node{Id: "sidecar~10.0.0.1~web-0.shop~shop.svc.cluster.local", Cluster: "web", Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
		"disable_spiffe_cert_validation": structpb.NewStringValue("true"), "NAMESPACE": structpb.NewStringValue("shop"),
	}}}
	first := func(names ...string) *discoveryv3.DiscoveryRequest {
		return &discoveryv3.DiscoveryRequest{Node: node, TypeUrl: sds.TypeURL, ResourceNames: names}
	}
	ack := func(names ...string) *discoveryv3.DiscoveryRequest {
		return &discoveryv3.DiscoveryRequest{TypeUrl: sds.TypeURL, ResourceNames: names, ResponseNonce: lastNonce, VersionInfo: "v"}
	}
	nack := func(names ...string) *discoveryv3.DiscoveryRequest {
		r := ack(names...)
		r.ErrorDetail = &statuspb.Status{Code: 13, Message: "Failed to load certificate chain from <inline>"}
		return r
	}
	many := make([]string, 101)
	return map[string][]*discoveryv3.DiscoveryRequest{
		"default":     {first("default"), ack("default"), ack("default"), ack("default")},
		"root":        {first("ROOTCA"), ack("ROOTCA")},
		"both":        {first("default", "ROOTCA"), nack("default", "ROOTCA"), ack("ROOTCA"), ack("default", "ROOTCA"), ack("default")},
		"reconnect":   {{TypeUrl: sds.TypeURL, ResourceNames: []string{"default"}, VersionInfo: "0123456789abcdef", ResponseNonce: "", Node: node}, nack("default"), nack("default", "ROOTCA"), nack()},
		"unsubscribe": {first("default"), ack(), ack("default"), nack(), nack("default")},
		"gateway":     {first("kubernetes://shop-credential"), ack("kubernetes://shop-credential", "file-root:system", "spiffe://cluster.local")},
		"stale":       {first("default"), {ResponseNonce: "other", ResourceNames: []string{"ROOTCA"}}, ack("ROOTCA")},
		"wrong type":  {first("default"), {TypeUrl: "type.googleapis.com/envoy.config.listener.v3.Listener", ResponseNonce: lastNonce}},
		"no type":     {{ResourceNames: []string{"default"}}},
		"many names":  {first(many...)},
		"nothing":     {first(), ack()},
	}
}

func script(tb testing.TB, requests []*discoveryv3.DiscoveryRequest) []byte {
	tb.Helper()
	var data []byte
	for _, r := range requests {
		message, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
		if err != nil {
			tb.Fatal(err)
		}
		data = binary.BigEndian.AppendUint16(data, uint16(len(message)))
		data = append(data, message...)
	}
	return data
}
