package sds_test

import (
	"strconv"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/sds"
)

// FuzzRequest compares what we read of a request with what the library does.
func FuzzRequest(f *testing.F) {
	for _, requests := range conversations() {
		for _, r := range requests {
			data, err := proto.Marshal(r)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, deny := sds.Decode(data)
		r := &discoveryv3.DiscoveryRequest{}
		if err := proto.Unmarshal(data, r); err != nil {
			return // in a field that we skip, perhaps
		}
		if deny != nil {
			t.Fatalf("refused: %v", deny)
		}
		if got.Refusal != "" != (r.GetErrorDetail() != nil) {
			t.Errorf("refusal %q, the library has %v", got.Refusal, r.GetErrorDetail())
		}
		want := sds.Decoded{
			Names: r.GetResourceNames(), TypeURL: r.GetTypeUrl(), Nonce: r.GetResponseNonce(), Refusal: got.Refusal,
			NodeID: attest.Escape(r.GetNode().GetId()), NodeCluster: attest.Escape(r.GetNode().GetCluster()),
		}
		want.Names = want.Names[:min(len(want.Names), 101)]
		switch v := r.GetNode().GetMetadata().GetFields()["disable_spiffe_cert_validation"].GetKind().(type) {
		case *structpb.Value_BoolValue:
			want.PlainRoots = v.BoolValue
		case *structpb.Value_StringValue:
			want.PlainRoots, _ = strconv.ParseBool(v.StringValue)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("request (-library +ours):\n%s", diff)
		}
	})
}

func TestRequestTooLarge(t *testing.T) {
	t.Parallel()
	data, err := proto.Marshal(&discoveryv3.DiscoveryRequest{VersionInfo: strings.Repeat("x", 256<<10)})
	if err != nil {
		t.Fatal(err)
	}
	if _, deny := sds.Decode(data); deny == nil || deny.Reason != attest.RequestTooLarge {
		t.Errorf("got %v", deny)
	}
}

func TestRequestMalformed(t *testing.T) {
	t.Parallel()
	for name, data := range map[string]string{
		"garbage": "\xff\xff\xff", "cut": "\x1a\x05def", "node": "\x12\x02\x0a\x05", "not UTF-8": "\x1a\x01\xff",
		"metadata": "\x12\x04\x1a\x02\x0a\x09", "error": "\x32\x02\x12\x09", "end of no group": "\x0c", "field 0": "\x02\x00",
	} {
		if _, deny := sds.Decode([]byte(data)); deny == nil || deny.Reason != attest.RequestMalformed {
			t.Errorf("%s: got %v", name, deny)
		}
	}
}

// envoyNode is as large as that of a plain Envoy.
func envoyNode() *corev3.Node {
	n := &corev3.Node{Id: "sidecar~10.0.0.1~web-0.shop~shop.svc.cluster.local", Cluster: "web", UserAgentName: "envoy"}
	for range 516 {
		n.Extensions = append(n.Extensions, &corev3.Extension{Name: "envoy.filters.http.some_filter", Category: "envoy.filters.http", TypeUrls: []string{"envoy.extensions.filters.http.some_filter.v3.SomeFilter"}})
	}
	return n
}

func BenchmarkDecode(b *testing.B) {
	data, err := proto.Marshal(&discoveryv3.DiscoveryRequest{Node: envoyNode(), TypeUrl: sds.TypeURL, ResourceNames: []string{"default"}})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, deny := sds.Decode(data); deny != nil {
				b.Fatal(deny)
			}
		}
	})
	b.Run("library", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := proto.Unmarshal(data, &discoveryv3.DiscoveryRequest{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
