package istioca_test

import (
	"context"
	"math"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	"istio.io/api/security/v1alpha1"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/ledger"
	"github.com/hallmark-ca/hallmark/sds/istioca"
	"github.com/hallmark-ca/hallmark/sds/ra"
	"github.com/hallmark-ca/hallmark/sds/ra/ratest"
)

// opaque is all that is told to whoever did not prove who it is.
var opaque = regexp.MustCompile(`^not authenticated \(id [A-Z2-7]{16}\)$`)

// TestNotAuthenticated wants one code and one text for everybody, the reason in
// the metric, and a record of those alone whom the cluster vouched for.
func TestNotAuthenticated(t *testing.T) {
	t.Parallel()
	stranger := attest.Identity{}
	for _, c := range []struct {
		name     string
		reason   attest.Reason
		recorded bool
		header   []string // instead of the token
		prepare  func(*door, *attest.Pod, *v1alpha1.IstioCertificateRequest)
	}{
		{name: "no header", reason: attest.TokenMissing, header: []string{}},
		{name: "other scheme", reason: attest.TokenMissing, header: []string{"authorization", "Basic dG9rZW4="}},
		{name: "empty token", reason: attest.TokenMissing, header: []string{"authorization", "Bearer "}},
		{name: "two headers", reason: attest.TokenRejected, header: []string{"authorization", "Bearer TOKEN", "authorization", "Bearer TOKEN"}},
		{name: "garbage", reason: attest.TokenRejected, header: []string{"authorization", "Bearer garbage"}},
		{name: "other cluster", reason: attest.ClusterUnknown, header: []string{"authorization", "Bearer TOKEN", "clusterid", "mars"}},
		{name: "pod gone", reason: attest.PodGone, recorded: true, prepare: func(d *door, pod *attest.Pod, _ *v1alpha1.IstioCertificateRequest) {
			d.Cluster.Remove(pod.Ref)
		}},
		{name: "pod made anew", reason: attest.PodReplaced, recorded: true, prepare: func(d *door, pod *attest.Pod, _ *v1alpha1.IstioCertificateRequest) {
			d.Cluster.Change(pod.Ref, func(p *attest.Pod) { p.Ref.UID = "uid-other" })
		}},
		{name: "pod terminating", reason: attest.PodTerminating, recorded: true, prepare: func(d *door, pod *attest.Pod, _ *v1alpha1.IstioCertificateRequest) {
			d.Cluster.Change(pod.Ref, func(p *attest.Pod) { p.Terminating = true })
		}},
		{name: "another's identity", reason: attest.IdentityNotOwn, recorded: true, prepare: func(d *door, _ *attest.Pod, req *v1alpha1.IstioCertificateRequest) {
			req.Metadata = meta(t, "ImpersonatedIdentity", d.Identity(t, "shop", "admin").String())
		}},
		{name: "no identity", reason: attest.IdentityNotOwn, recorded: true, prepare: func(_ *door, _ *attest.Pod, req *v1alpha1.IstioCertificateRequest) {
			req.Metadata = meta(t, "ImpersonatedIdentity", "spiffe://cluster.local/ns/shop/sa/..")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := open(t, ratest.Config{}, nil)
			pod, token, _ := d.pod(t, "web-1")
			req := request(t, catest.CSR(t, d.key, stranger), nil)
			if c.prepare != nil {
				c.prepare(d, pod, req)
			}
			ctx := ratest.With(t.Context(), token)
			if c.header != nil {
				ctx = metadata.NewOutgoingContext(t.Context(), metadata.Pairs(strings.Split(strings.ReplaceAll(strings.Join(c.header, "\n"), "TOKEN", token), "\n")[:len(c.header)]...))
			}
			_, err := d.client.CreateCertificate(ctx, req)
			text := status.Convert(err).Message()
			if status.Code(err) != codes.Unauthenticated || !opaque.MatchString(text) {
				t.Errorf("answer is %v", err)
			}
			if d.Refused(t, c.reason, istioca.Door) != 1 || d.Count(t, "hallmark_refusals_total") != 1 || d.Count(t, "citadel_server_authentication_failure_count") != 1 {
				t.Errorf("not counted once, as %s", c.reason)
			}
			id := strings.TrimSuffix(text[strings.Index(text, "id ")+3:], ")")
			if !strings.Contains(d.Log.String(), `"id":"`+id+`"`) || strings.Contains(d.Log.String(), token) {
				t.Errorf("the log does not know the id %s, or knows the token:\n%s", id, d.Log)
			}
			checkRecord(t, d, c.recorded, ledger.Refusal{ID: id, Reason: c.reason.String(), PodUID: pod.Ref.UID, Door: istioca.Door})
		})
	}
}

func meta(tb testing.TB, key string, value any) *structpb.Struct {
	tb.Helper()
	return request(tb, nil, map[string]any{key: value}).GetMetadata()
}

func checkRecord(t *testing.T, d *door, want bool, r ledger.Refusal) {
	t.Helper()
	got := d.Authority.Ledger.Refusals()
	if !want {
		if len(got) != 0 {
			t.Errorf("the ledger took %+v", got)
		}
		return
	}
	if len(got) != 1 || got[0].ID != r.ID || got[0].Reason != r.Reason || got[0].PodUID != r.PodUID || got[0].Door != r.Door {
		t.Errorf("the ledger has %+v, want %+v", got, r)
	}
	for _, intent := range d.Authority.Ledger.Intents() {
		if intent.Door == istioca.Door {
			t.Errorf("%s was to be signed", intent.Serial)
		}
	}
}

// TestRefusedByCode holds the codes by which clients act, for callers who proved
// who they are.
func TestRefusedByCode(t *testing.T) {
	t.Parallel()
	type ask struct {
		d        *door
		pod      *attest.Pod
		identity attest.Identity
		req      *v1alpha1.IstioCertificateRequest
	}
	for _, c := range []struct {
		name    string
		code    codes.Code
		reason  attest.Reason
		says    []string
		prepare func(*testing.T, ask)
	}{
		{"image refused", codes.PermissionDenied, attest.ImageUnsigned, []string{image, "shop/web-1"}, func(t *testing.T, a ask) {
			a.d.Gate.Deny(image, attest.ImageUnsigned)
		}},
		{"registry away", codes.Unavailable, attest.RegistryAway, nil, func(t *testing.T, a ask) {
			a.d.Gate.Deny(image, attest.RegistryAway)
		}},
		{"no lifetime", codes.InvalidArgument, attest.LifetimeInvalid, nil, func(t *testing.T, a ask) { a.req.ValidityDuration = 0 }},
		{"negative lifetime", codes.InvalidArgument, attest.LifetimeInvalid, nil, func(t *testing.T, a ask) { a.req.ValidityDuration = -1 }},
		{"most negative lifetime", codes.InvalidArgument, attest.LifetimeInvalid, nil, func(t *testing.T, a ask) { a.req.ValidityDuration = math.MinInt64 }},
		{"lifetime below the floor", codes.InvalidArgument, attest.LifetimeInvalid, nil, func(t *testing.T, a ask) { a.req.ValidityDuration = 599 }},
		{"another signer", codes.InvalidArgument, attest.RequestMalformed, []string{"CertSigner"}, func(t *testing.T, a ask) { a.req.Metadata = meta(t, "CertSigner", "vault") }},
		{"identity is no string", codes.InvalidArgument, attest.RequestMalformed, []string{"ImpersonatedIdentity"}, func(t *testing.T, a ask) { a.req.Metadata = meta(t, "ImpersonatedIdentity", true) }},
		{"no request in it", codes.InvalidArgument, attest.CSRMalformed, nil, func(t *testing.T, a ask) { a.req.Csr = "" }},
		{"data behind the request", codes.InvalidArgument, attest.CSRMalformed, nil, func(t *testing.T, a ask) { a.req.Csr += "trailing" }},
		{"another's name", codes.InvalidArgument, attest.CSRNameForeign, nil, func(t *testing.T, a ask) {
			a.req.Csr = string(catest.CSR(t, a.d.key, a.d.Identity(t, "shop", "admin")))
		}},
		{"weak key", codes.InvalidArgument, attest.CSRKeyRefused, nil, func(t *testing.T, a ask) {
			a.req.Csr = string(catest.CSR(t, catest.RSA(t, 1024), a.identity))
		}},
		{"too large", codes.InvalidArgument, attest.RequestTooLarge, nil, func(t *testing.T, a ask) { a.req.Csr = strings.Repeat("a", 33<<10) }},
		{"ledger full", codes.Unavailable, attest.LedgerUnwritable, nil, func(t *testing.T, a ask) {
			a.d.Authority.Ledger.Fail(net.ErrClosed)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := open(t, ratest.Config{}, nil)
			pod, token, identity := d.pod(t, "web-1")
			a := ask{d, pod, identity, request(t, catest.CSR(t, d.key, identity), nil)}
			c.prepare(t, a)
			_, err := d.call(t, token, a.req)
			text := status.Convert(err).Message()
			if status.Code(err) != c.code || !strings.HasPrefix(text, c.reason.String()+": ") || !strings.Contains(text, c.reason.Mend()) {
				t.Errorf("answer is %v", err)
			}
			for _, want := range c.says {
				if !strings.Contains(text, want) {
					t.Errorf("%q does not name %s", text, want)
				}
			}
			if strings.Contains(text, "told to refuse it") || strings.Contains(text, "vault") {
				t.Errorf("%q tells a detail", text)
			}
			if d.Refused(t, c.reason, istioca.Door) != 1 || d.Count(t, "citadel_server_csr_sign_err_count", "error", c.reason.String()) != 1 {
				t.Errorf("not counted once, as %s", c.reason)
			}
			id := text[strings.LastIndex(text, "id ")+3 : len(text)-1]
			checkRecord(t, d, true, ledger.Refusal{ID: id, Reason: c.reason.String(), PodUID: pod.Ref.UID, Door: istioca.Door})
		})
	}
}

// TestLongLifetimeIsCut wants the maximum for whoever asks for more, up to where
// seconds no longer fit a duration.
func TestLongLifetimeIsCut(t *testing.T) {
	t.Parallel()
	d := open(t, ratest.Config{}, nil)
	_, token, identity := d.pod(t, "web-1")
	for _, seconds := range []int64{86401, math.MaxInt64 / int64(time.Second), math.MaxInt64/int64(time.Second) + 1, math.MaxInt64} {
		req := request(t, catest.CSR(t, d.key, identity), nil)
		req.ValidityDuration = seconds
		answer, err := d.call(t, token, req)
		if err != nil {
			t.Fatalf("%d s: %v", seconds, err)
		}
		if life := time.Until(parse(t, answer.GetCertChain()[0])[0].NotAfter); life > 24*time.Hour || life < 22*time.Hour {
			t.Errorf("%d s: got %s", seconds, life)
		}
	}
}

// frames sends bytes as they are.
type frames struct{}

func (frames) Marshal(v any) ([]byte, error)      { return v.([]byte), nil }
func (frames) Unmarshal(data []byte, v any) error { *v.(*[]byte) = data; return nil }
func (frames) Name() string                       { return "proto" }

const method = v1alpha1.IstioCertificateService_CreateCertificate_FullMethodName

// TestNotARequest sends what no client sends: none may be our fault.
func TestNotARequest(t *testing.T) {
	t.Parallel()
	d := open(t, ratest.Config{}, nil)
	_, token, _ := d.pod(t, "web-1")
	conn := d.Dial(t, d.addr)
	for name, c := range map[string]struct {
		body []byte
		code codes.Code
	}{
		"not Protocol Buffers": {[]byte("\xff\xff\xff"), codes.InvalidArgument},
		"text that is no text": {[]byte("\x0a\x02\xff\xfe"), codes.InvalidArgument},
		"empty":                {nil, codes.InvalidArgument},
		"above what is read":   {make([]byte, 600<<10), codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			var out []byte
			err := conn.Invoke(ratest.With(t.Context(), token), method, c.body, &out, grpc.ForceCodec(frames{}))
			if status.Code(err) != c.code {
				t.Errorf("answer is %v", err)
			}
		})
	}
	if d.Refused(t, attest.RequestMalformed, istioca.Door) != 2 || d.Refused(t, attest.RequestTooLarge, istioca.Door) != 1 {
		t.Errorf("not counted:\n%s", d.Log)
	}
	stream, err := conn.NewStream(ratest.With(t.Context(), token), &grpc.StreamDesc{ClientStreams: true}, method)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(&v1alpha1.IstioCertificateResponse{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a call without a request is answered %v", err)
	}
}

// TestStrangersAreNotRead wants the refusal before the request has come.
func TestStrangersAreNotRead(t *testing.T) {
	t.Parallel()
	d := open(t, ratest.Config{}, nil)
	stream, err := d.Dial(t, d.addr).NewStream(ratest.With(t.Context(), "garbage"), &grpc.StreamDesc{ClientStreams: true}, method)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(&v1alpha1.IstioCertificateResponse{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("answer is %v", err)
	}
}

// TestRequestThatNeverComes wants the call ended when its answer would be due.
func TestRequestThatNeverComes(t *testing.T) {
	t.Parallel()
	d := open(t, ratest.Config{RA: func(c *ra.Config) { c.Timeout = 50 * time.Millisecond }}, nil)
	_, token, _ := d.pod(t, "web-1")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stream, err := d.Dial(t, d.addr).NewStream(ratest.With(ctx, token), &grpc.StreamDesc{ClientStreams: true}, method)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(&v1alpha1.IstioCertificateResponse{}); status.Code(err) != codes.DeadlineExceeded || ctx.Err() != nil {
		t.Errorf("answer is %v", err)
	}
}
