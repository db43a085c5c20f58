package istioca

import (
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/hallmark-ca/hallmark/ca"
	"github.com/hallmark-ca/hallmark/sds/ra"
)

// chainField is cert_chain in IstioCertificateResponse, its only field: the leaf,
// then one certificate an element, and the whole bundle as the last.
const chainField protowire.Number = 1

// tail is what follows the leaf in every answer under one snapshot, encoded.
type tail struct {
	of      *ca.Snapshot
	encoded []byte
}

// reply encodes the answer. The tail is encoded once for each snapshot: two that
// find none both make it, and it is the same.
func (s *Service) reply(issued *ca.Issued) ra.Encoded {
	t := s.tail.Load()
	if t == nil || t.of != issued.Snapshot {
		t = &tail{of: issued.Snapshot}
		for _, element := range issued.Snapshot.ChainPEM() {
			t.encoded = appendElement(t.encoded, element)
		}
		t.encoded = appendElement(t.encoded, issued.Snapshot.BundlePEM())
		s.tail.Store(t)
	}
	leaf := issued.LeafPEM()
	return ra.Encoded{appendElement(make([]byte, 0, len(leaf)+8), leaf), t.encoded}
}

func appendElement(b, pem []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, chainField, protowire.BytesType), pem)
}
