package sds

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	statuspb "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/sds/ra"
)

// maxRequest bounds a request, 256 KiB: a plain Envoy's Node has 61 KB, and may
// come with every answer.
const maxRequest = 256 << 10

// request is what is used of a DiscoveryRequest. It reads itself (ra.Decoder):
// of a Node of 61 KB it keeps two names and a boolean, and the library would
// make 155 KiB of it first.
type request struct {
	names   []string
	typeURL string
	nonce   string
	refusal string // what the client says of the last response, escaped; "" accepts it
	node    node
	later   bool              // not the stream's first: its Node is not looked at
	deny    *attest.DenyError // what is wrong with it
}

var _ ra.Decoder = (*request)(nil)

// Decode implements [ra.Decoder].
func (r *request) Decode(data []byte) {
	if len(data) > maxRequest {
		r.deny = attest.Deny(attest.RequestTooLarge, "", "%d bytes, at most %d are allowed", len(data), maxRequest)
		return
	}
	if err := r.read(data); err != nil {
		r.deny = attest.Deny(attest.RequestMalformed, "", "decoding request: %v", err)
	}
}

// Fields of envoy.service.discovery.v3.DiscoveryRequest and
// envoy.config.core.v3.Node.
const (
	requestNode, requestNames, requestTypeURL, requestNonce, requestError = 2, 3, 4, 5, 6
	nodeID, nodeCluster, nodeMetadata                                     = 1, 2, 3
)

func (r *request) read(data []byte) error {
	return eachField(data, func(field protowire.Number, value []byte) (err error) {
		switch field {
		case requestNode:
			if !r.later {
				err = r.node.read(value)
			}
		case requestNames:
			// One too many is enough to be refused.
			if len(r.names) <= maxNames {
				name := ""
				err = readText(&name, value)
				r.names = append(r.names, name)
			}
		case requestTypeURL:
			err = readText(&r.typeURL, value)
		case requestNonce:
			err = readText(&r.nonce, value)
		case requestError:
			said := &statuspb.Status{}
			err = proto.Unmarshal(value, said)
			r.refusal = attest.Escape(fmt.Sprintf("code %d: %s", said.GetCode(), said.GetMessage()))
		}
		return err
	})
}

// read takes from a Node what is kept of it. A field that comes again takes the
// place of the first, as the format has it.
func (n *node) read(data []byte) error {
	return eachField(data, func(field protowire.Number, value []byte) (err error) {
		text := ""
		switch field {
		case nodeID:
			err = readText(&text, value)
			n.id = attest.Escape(text)
		case nodeCluster:
			err = readText(&text, value)
			n.cluster = attest.Escape(text)
		case nodeMetadata:
			metadata := &structpb.Struct{}
			err = proto.Unmarshal(value, metadata)
			if v, said := metadata.GetFields()["disable_spiffe_cert_validation"]; said {
				n.plainRoots = claims(v)
			}
		}
		return err
	})
}

// eachField calls read with every field that has a length, and skips the others.
func eachField(data []byte, read func(protowire.Number, []byte) error) error {
	for len(data) > 0 {
		field, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return protowire.ParseError(n)
		}
		data = data[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(field, kind, data); n < 0 {
				return protowire.ParseError(n)
			}
			data = data[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(data)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := read(field, value); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

var errUTF8 = errors.New("a text is not UTF-8")

func readText(into *string, value []byte) error {
	if !utf8.Valid(value) {
		return errUTF8
	}
	*into = string(value)
	return nil
}

// Fields of envoy.service.discovery.v3.DiscoveryResponse and
// google.protobuf.Any.
const (
	responseVersion, responseResources, responseTypeURL, responseNonce = 1, 2, 4, 5
	anyTypeURL, anyValue                                               = 1, 2
)

// encodeResponse is a DiscoveryResponse on the wire. What the resources share
// with other streams is not copied: keys least of all.
func encodeResponse(version, nonce string, secrets []secret) ra.Encoded {
	var around []byte
	around = appendText(around, responseVersion, version)
	around = appendText(around, responseTypeURL, TypeURL)
	around = appendText(around, responseNonce, nonce)
	pieces := ra.Encoded{around}
	for _, s := range secrets {
		pieces = append(pieces, s.resource...)
	}
	return pieces
}

func appendText(b []byte, field protowire.Number, text string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), text)
}

// resourceOf is one field "resources" of a response, in two pieces: what leads
// to the secret and its name, and the secret without it.
func resourceOf(name string, tail []byte) [][]byte {
	const secretName = 1
	named := appendText(nil, secretName, name)
	value := len(named) + len(tail)
	any := appendText(nil, anyTypeURL, TypeURL)
	any = protowire.AppendTag(any, anyValue, protowire.BytesType)
	any = protowire.AppendVarint(any, uint64(value))
	head := protowire.AppendTag(nil, responseResources, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(len(any)+value))
	head = append(append(head, any...), named...)
	return [][]byte{head, tail}
}
