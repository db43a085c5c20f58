package sds_test

import (
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/sds"
	"github.com/hallmark-ca/hallmark/sds/ra"
	"github.com/hallmark-ca/hallmark/sds/sdstest"
)

// TestNodeIsReadOnce: later requests' Nodes are passed over, as large as they are.
func TestNodeIsReadOnce(t *testing.T) {
	data, err := proto.Marshal(&discoveryv3.DiscoveryRequest{Node: &corev3.Node{Id: "a", Cluster: "b"}, ResourceNames: []string{"default"}, ResponseNonce: "n"})
	if err != nil {
		t.Fatal(err)
	}
	first, deny := sds.Decode(data)
	if deny != nil || first.NodeID != "a" || first.NodeCluster != "b" {
		t.Errorf("first: %+v, %v", first, deny)
	}
	later, deny := sds.DecodeLater(data)
	if deny != nil || later.NodeID != "" || later.NodeCluster != "" || later.Nonce != "n" || len(later.Names) != 1 {
		t.Errorf("later: %+v, %v", later, deny)
	}
	play(t, nil, func(t *testing.T, s *scene) {
		const noNode = "\x12\x02\x0a\x05"
		c := sdstest.Open(t, faulty{s, func(m any) { m.(ra.Decoder).Decode([]byte(noNode)) }}, "good", time.Now)
		c.First(nil, sds.DefaultName)
		synctest.Wait()
		if c.Ended() {
			t.Errorf("a later Node was looked at: %v", c.Err())
		}
		c.Cancel()
		<-c.Done()
	})
}

// faulty is a server whose streams have a second read of the test's.
type faulty struct {
	secretv3.SecretDiscoveryServiceServer
	second func(m any)
}

func (f faulty) StreamSecrets(rpc secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	return f.SecretDiscoveryServiceServer.StreamSecrets(&faultyStream{SecretDiscoveryService_StreamSecretsServer: rpc, second: f.second})
}

type faultyStream struct {
	secretv3.SecretDiscoveryService_StreamSecretsServer
	second func(m any)
	reads  int
}

func (f *faultyStream) RecvMsg(m any) error {
	if f.reads++; f.reads == 2 {
		f.second(m)
		return nil
	}
	return f.SecretDiscoveryService_StreamSecretsServer.RecvMsg(m)
}

// TestPanicOfAReader ends its stream, not the process.
func TestPanicOfAReader(t *testing.T) {
	play(t, nil, func(t *testing.T, s *scene) {
		c := sdstest.Open(t, faulty{s, func(any) { panic("a fault of ours") }}, "good", time.Now)
		c.First(nil, sds.DefaultName)
		expectEnd(t, c, codes.Unavailable, attest.InternalError.String())
	})
}
