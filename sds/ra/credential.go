package ra

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/hallmark-ca/hallmark/attest"
)

// bearer is the authorization scheme (RFC 6750 section 2.1); its case does not
// count (RFC 9110 section 11.1).
const bearer = "bearer "

// CredentialFrom returns what the call of ctx presents, unchecked: the bearer
// token, the clusterid header and the peer's address. Several lines of a header
// count as one, joined by commas (RFC 9110 section 5.2): no token and no cluster
// id has one, so that none of several is ever chosen.
func CredentialFrom(ctx context.Context) attest.Credential {
	cred := attest.Credential{Cluster: header(ctx, "clusterid"), Peer: peerOf(ctx)}
	if value := header(ctx, "authorization"); len(value) > len(bearer) && strings.EqualFold(value[:len(bearer)], bearer) {
		cred.Token = value[len(bearer):]
	}
	return cred
}

// Connected returns when the call's connection was accepted: our own certificate
// of then, or a later one, was taken by its client. Zero if it is not known.
func Connected(ctx context.Context) time.Time {
	if p, ok := peer.FromContext(ctx); ok {
		if s, ok := p.AuthInfo.(session); ok {
			return s.conn.accepted
		}
	}
	return time.Time{}
}

func header(ctx context.Context, name string) string {
	switch values := metadata.ValueFromIncomingContext(ctx, name); len(values) {
	case 0:
		return ""
	case 1:
		return values[0]
	default:
		return strings.Join(values, ",")
	}
}

func peerOf(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return netip.Addr{}
	}
	return addrOf(p.Addr)
}

func addrOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
