package sds

import "github.com/hallmark-ca/hallmark/attest"

// Decoded is what is read of a request.
type Decoded struct {
	Names                   []string
	TypeURL, Nonce, Refusal string
	NodeID, NodeCluster     string
	PlainRoots              bool
}

// Decode reads a stream's first request.
func Decode(data []byte) (Decoded, *attest.DenyError) { return decode(&request{}, data) }

// DecodeLater reads one that is not the first.
func DecodeLater(data []byte) (Decoded, *attest.DenyError) {
	return decode(&request{later: true}, data)
}

func decode(r *request, data []byte) (Decoded, *attest.DenyError) {
	r.Decode(data)
	return Decoded{r.names, r.typeURL, r.nonce, r.refusal, r.node.id, r.node.cluster, r.node.plainRoots}, r.deny
}
