package sds

import (
	"strconv"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/hallmark-ca/hallmark/attest"
)

// The names of state of the world. An identity and a trust domain can also be
// named by their own URI.
const (
	DefaultName = "default" // the caller's own SVID
	RootsName   = "ROOTCA"  // the bundle of the caller's trust domain
)

// topic is what a name stands for.
type topic uint8

const (
	topicUnknown topic = iota
	topicSVID
	topicBundle
)

func (t topic) String() string {
	if t == topicSVID {
		return "svid"
	}
	return "bundle"
}

// topicOf resolves a name for its caller. Names of others are as unknown as
// those of nobody: what is not the caller's does not exist for it.
func topicOf(name string, own attest.Identity) topic {
	switch name {
	case DefaultName, own.String():
		return topicSVID
	case RootsName, "spiffe://" + own.TrustDomain().String():
		return topicBundle
	}
	return topicUnknown
}

// node is what is kept of an Envoy's Node, which has 61 KB.
type node struct {
	id, cluster string // escaped, for the log alone
	// plainRoots: the client has its SPIFFE validator turned off and wants roots
	// alone.
	plainRoots bool
}

// claims reads a boolean that may have been written as a string.
func claims(v *structpb.Value) bool {
	if text, ok := v.GetKind().(*structpb.Value_StringValue); ok {
		is, err := strconv.ParseBool(text.StringValue)
		return err == nil && is
	}
	return v.GetBoolValue()
}
