package ledger

import (
	"encoding/json"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// Intents and outcomes are written on every signature, so their JSON is put
// together here. A test holds it equal to encoding/json's, byte by byte.

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 2048); return &b }}

// encodeFrame returns a whole frame in a pooled buffer, which the caller puts
// back: room for the header, then what body appends.
func encodeFrame(typ frameType, body func([]byte) ([]byte, error)) (*[]byte, error) {
	buf := buffers.Get().(*[]byte)
	var header [frameHeader]byte
	out, err := body(append((*buf)[:0], header[:]...))
	if err == nil && len(out)-frameHeader > maxBody {
		err = fmt.Errorf("%d bytes, at most %d", len(out)-frameHeader, maxBody)
	}
	if err != nil {
		buffers.Put(buf)
		return nil, fmt.Errorf("encoding ledger record: %w", err)
	}
	sealFrame(out, typ)
	*buf = out
	return buf, nil
}

func (i *Intent) append(b []byte) ([]byte, error) {
	b = appendText(append(b, '{'), "id", i.ID, false)
	b = appendTime(b, "time", i.Time)
	b = appendText(b, "serial", i.Serial, false)
	b = appendText(b, "identity", i.Identity, false)
	b = appendText(b, "cluster", i.Cluster, true)
	b = appendText(b, "namespace", i.Namespace, true)
	b = appendText(b, "pod", i.Pod, true)
	b = appendText(b, "podUID", i.PodUID, true)
	b = appendText(b, "node", i.Node, true)
	b = appendText(b, "door", i.Door, false)
	b = appendText(b, "method", i.Method, true)
	b = appendText(b, "authority", i.Authority, false)
	b = appendText(b, "root", i.Root, false)
	b = appendTime(b, "notBefore", i.NotBefore)
	b = appendTime(b, "notAfter", i.NotAfter)
	b = appendText(b, "keySHA256", i.KeySHA256, false)
	b = appendText(b, "tbsSHA256", i.TBSSHA256, false)
	if len(i.Images) > 0 {
		b = append(appendName(b, "images"), '[')
		for n := range i.Images {
			if n > 0 {
				b = append(b, ',')
			}
			b = i.Images[n].append(b)
		}
		b = append(b, ']')
	}
	b = appendCount(b, "moreImages", i.MoreImages)
	b = appendText(b, "imagesSHA256", i.ImagesSHA256, true)
	if i.Provisional {
		b = append(appendName(b, "provisional"), "true"...)
	}
	return append(b, '}'), nil
}

func (m *Image) append(b []byte) []byte {
	b = appendText(append(b, '{'), "container", m.Container, false)
	b = appendCount(b, "alike", m.Alike)
	b = appendText(b, "image", m.Image, false)
	b = appendText(b, "digest", m.Digest, true)
	b = appendText(b, "verdict", m.Verdict, false)
	b = appendText(b, "reason", m.Reason, true)
	if len(m.Policies) > 0 {
		b = append(appendName(b, "policies"), '[')
		for n, policy := range m.Policies {
			if n > 0 {
				b = append(b, ',')
			}
			b = appendString(b, policy)
		}
		b = append(b, ']')
	}
	b = appendText(b, "authority", m.Authority, true)
	b = appendText(b, "signer", m.Signer, true)
	return append(b, '}')
}

func (o *Outcome) append(b []byte) ([]byte, error) {
	b = appendText(append(b, '{'), "id", o.ID, false)
	b = appendTime(b, "time", o.Time)
	b = appendText(b, "serial", o.Serial, false)
	b = appendText(b, "status", o.Status, false)
	b = appendText(b, "certSHA256", o.CertSHA256, true)
	b = appendText(b, "detail", o.Detail, true)
	return append(b, '}'), nil
}

// append is rare, and left to the library.
func (r *Refusal) append(b []byte) ([]byte, error) {
	text, err := json.Marshal(r)
	return append(b, text...), err
}

func appendName(b []byte, name string) []byte {
	if b[len(b)-1] != '{' {
		b = append(b, ',')
	}
	b = append(append(b, '"'), name...)
	return append(b, '"', ':')
}

func appendText(b []byte, name, value string, omitEmpty bool) []byte {
	if omitEmpty && value == "" {
		return b
	}
	return appendString(appendName(b, name), value)
}

func appendCount(b []byte, name string, n int) []byte {
	if n == 0 {
		return b
	}
	return strconv.AppendInt(appendName(b, name), int64(n), 10)
}

func appendTime(b []byte, name string, t time.Time) []byte {
	b = append(appendName(b, name), '"')
	return append(t.AppendFormat(b, time.RFC3339Nano), '"')
}

// appendString writes a string that needs no escape as it is, and leaves any
// other to the library.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			text, _ := json.Marshal(s) // of a string: cannot fail
			return append(b, text...)
		}
	}
	b = append(append(b, '"'), s...)
	return append(b, '"')
}
