package sds

import "github.com/hallmark-ca/hallmark/attest"

// Decoded is what is read of a request.
type Decoded struct {
	Names                   []string
	TypeURL, Nonce, Refusal string
	NodeID, NodeCluster     string
	PlainRoots              bool
}

// Decode reads a request.
func Decode(data []byte) (Decoded, *attest.DenyError) {
	r := &request{}
	r.Decode(data)
	return Decoded{r.names, r.typeURL, r.nonce, r.refusal, r.node.id, r.node.cluster, r.node.plainRoots}, r.deny
}
