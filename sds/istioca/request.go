package istioca

import (
	"math"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"istio.io/api/security/v1alpha1"

	"github.com/hallmark-ca/hallmark/attest"
)

// maxRequest bounds a request, in bytes: one with an RSA-4096 key has 1,900.
const maxRequest = 32 << 10

// Metadata of a request that is understood; all other is ignored. ztunnel sends
// the first, pilot-agent always the second, and empty.
const (
	metaImpersonated = "ImpersonatedIdentity"
	metaCertSigner   = "CertSigner"
)

// request is one IstioCertificateRequest, as far as it is used.
type request struct {
	csr          []byte
	lifetime     time.Duration
	impersonated string
	wrong        *attest.DenyError // why it is refused; nil if it can be read
}

// Decode implements [ra.Decoder].
func (r *request) Decode(data []byte) {
	if len(data) > maxRequest {
		r.wrong = attest.Deny(attest.RequestTooLarge, "request", "%d bytes, at most %d", len(data), maxRequest)
		return
	}
	var msg v1alpha1.IstioCertificateRequest
	if err := proto.Unmarshal(data, &msg); err != nil {
		r.wrong = attest.Deny(attest.RequestMalformed, "request", "%v", err)
		return
	}
	r.csr = []byte(msg.GetCsr())
	r.wrong = r.readLifetime(msg.GetValidityDuration())
	if deny := r.readMetadata(msg.GetMetadata().GetFields()); deny != nil {
		r.wrong = deny
	}
}

// readLifetime refuses none at all: every client of this protocol names one, and
// zero would ask the authority for its default.
func (r *request) readLifetime(seconds int64) *attest.DenyError {
	if seconds <= 0 {
		return attest.Deny(attest.LifetimeInvalid, "", "validity_duration is %d s", seconds)
	}
	r.lifetime = time.Duration(min(seconds, math.MaxInt64/int64(time.Second))) * time.Second
	return nil
}

func (r *request) readMetadata(fields map[string]*structpb.Value) *attest.DenyError {
	var deny *attest.DenyError
	if r.impersonated, deny = text(fields, metaImpersonated); deny != nil {
		return deny
	}
	signer, deny := text(fields, metaCertSigner)
	if deny == nil && signer != "" {
		deny = attest.Deny(attest.RequestMalformed, "metadata "+metaCertSigner, "there are no other signers to choose: %q", attest.Escape(signer))
	}
	return deny
}

// text returns a field that is a string, "" where there is none.
func text(fields map[string]*structpb.Value, key string) (string, *attest.DenyError) {
	value, ok := fields[key]
	if !ok {
		return "", nil
	}
	if s, ok := value.GetKind().(*structpb.Value_StringValue); ok {
		return s.StringValue, nil
	}
	return "", attest.Deny(attest.RequestMalformed, "metadata "+key, "it is no string")
}

// identity is what caller asks for. An identity that cannot be read is somebody
// else's; whether one that can be read may be had is the registrar's to say.
func (r *request) identity(caller attest.Caller) (attest.Identity, *attest.DenyError) {
	switch {
	case r.wrong != nil:
		return attest.Identity{}, r.wrong
	case r.impersonated == "":
		return caller.Identity, nil
	}
	identity, err := attest.ParseIdentity(r.impersonated)
	if err != nil {
		return attest.Identity{}, attest.Deny(attest.IdentityNotOwn, "", "%v", err)
	}
	return identity, nil
}
