package profile

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"math/big"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Certificate is what is to be certified, every field decided. Raw fields are
// DER as it will stand in the certificate.
type Certificate struct {
	Serial    *big.Int  // positive, at most 20 octets (RFC 5280 section 4.1.2.2)
	NotBefore time.Time // whole seconds
	NotAfter  time.Time // whole seconds

	Algorithm []byte // AlgorithmIdentifier of the signature
	Issuer    []byte // Name
	Subject   []byte // Name; [EmptyName] for an SVID
	Key       []byte // SubjectPublicKeyInfo

	KeyUsage       x509.KeyUsage // DigitalSignature, KeyEncipherment, CertSign, CRLSign
	ServerAndUser  bool          // extended key usage serverAuth and clientAuth
	CA             bool
	PathLen        int // of a CA: how many CAs may follow; -1 sets none
	SubjectKeyID   []byte
	AuthorityKeyID []byte // empty on a self-signed root

	URIs []string // as they will be written
	DNS  []string
	IPs  []net.IP
}

// EmptyName is the DER of a Name without any attribute.
var EmptyName = []byte{0x30, 0x00}

// Object identifiers of RFC 5280 section 4.2.1.
var (
	OIDKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	OIDExtKeyUsage      = asn1.ObjectIdentifier{2, 5, 29, 37}
	OIDBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	OIDSubjectKeyID     = asn1.ObjectIdentifier{2, 5, 29, 14}
	OIDAuthorityKeyID   = asn1.ObjectIdentifier{2, 5, 29, 35}
	OIDSubjectAltName   = asn1.ObjectIdentifier{2, 5, 29, 17}

	oidServerAuth = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}
	oidClientAuth = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}
)

// What stands in every certificate, in DER.
var (
	derVersion3         = mustDER(2) // counted from 0
	derTrue             = mustDER(true)
	derKeyUsage         = mustDER(OIDKeyUsage)
	derExtKeyUsage      = mustDER(OIDExtKeyUsage)
	derBasicConstraints = mustDER(OIDBasicConstraints)
	derSubjectKeyID     = mustDER(OIDSubjectKeyID)
	derAuthorityKeyID   = mustDER(OIDAuthorityKeyID)
	derSubjectAltName   = mustDER(OIDSubjectAltName)
)

func mustDER(v any) []byte {
	der, err := asn1.Marshal(v)
	if err != nil {
		panic(err)
	}
	return der
}

// Tags of GeneralName (RFC 5280 section 4.2.1.6).
const (
	tagDNS = cbasn1.Tag(2 | 0x80)
	tagURI = cbasn1.Tag(6 | 0x80)
	tagIP  = cbasn1.Tag(7 | 0x80)
)

// TBS returns the TBSCertificate of c in DER.
func (c *Certificate) TBS() ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, 640))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.Tag(0).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) {
			b.AddBytes(derVersion3)
		})
		b.AddASN1BigInt(c.Serial)
		b.AddBytes(c.Algorithm)
		b.AddBytes(c.Issuer)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			addTime(b, c.NotBefore)
			addTime(b, c.NotAfter)
		})
		b.AddBytes(c.Subject)
		b.AddBytes(c.Key)
		b.AddASN1(cbasn1.Tag(3).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, c.addExtensions)
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding to-be-signed certificate: %w", err)
	}
	return der, nil
}

// leafUsages are the extensions that all leaves have alike.
var leafUsages = sync.OnceValues(func() ([]byte, error) {
	b := cryptobyte.NewBuilder(nil)
	(&Certificate{KeyUsage: x509.KeyUsageDigitalSignature, ServerAndUser: true}).addUsages(b)
	return b.Bytes()
})

func (c *Certificate) addExtensions(b *cryptobyte.Builder) {
	if c.KeyUsage == x509.KeyUsageDigitalSignature && c.ServerAndUser && !c.CA {
		usages, err := leafUsages()
		b.AddBytes(usages)
		b.SetError(err)
	} else {
		c.addUsages(b)
	}
	addExtension(b, derSubjectKeyID, false, func(b *cryptobyte.Builder) {
		b.AddASN1OctetString(c.SubjectKeyID)
	})
	if len(c.AuthorityKeyID) > 0 {
		addExtension(b, derAuthorityKeyID, false, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(c.AuthorityKeyID) })
			})
		})
	}
	if len(c.URIs)+len(c.DNS)+len(c.IPs) > 0 {
		// RFC 5280 section 4.2.1.6: critical where the subject is empty.
		addExtension(b, derSubjectAltName, len(c.Subject) == len(EmptyName), c.addNames)
	}
}

// addUsages writes what the certificate may be used for.
func (c *Certificate) addUsages(b *cryptobyte.Builder) {
	addExtension(b, derKeyUsage, true, func(b *cryptobyte.Builder) { addKeyUsage(b, c.KeyUsage) })
	if c.ServerAndUser {
		addExtension(b, derExtKeyUsage, false, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidServerAuth)
				b.AddASN1ObjectIdentifier(oidClientAuth)
			})
		})
	}
	addExtension(b, derBasicConstraints, true, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			if !c.CA {
				return // cA is FALSE by default, and DER leaves defaults out
			}
			b.AddASN1Boolean(true)
			if c.PathLen >= 0 {
				b.AddASN1Int64(int64(c.PathLen))
			}
		})
	})
}

func (c *Certificate) addNames(b *cryptobyte.Builder) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, name := range c.DNS {
			b.AddASN1(tagDNS, func(b *cryptobyte.Builder) { b.AddBytes([]byte(name)) })
		}
		for _, ip := range c.IPs {
			short := ip.To4()
			if short == nil {
				short = ip
			}
			b.AddASN1(tagIP, func(b *cryptobyte.Builder) { b.AddBytes(short) })
		}
		for _, uri := range c.URIs {
			b.AddASN1(tagURI, func(b *cryptobyte.Builder) { b.AddBytes([]byte(uri)) })
		}
	})
}

func addExtension(b *cryptobyte.Builder, oid []byte, critical bool, value func(*cryptobyte.Builder)) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(oid)
		if critical {
			b.AddBytes(derTrue)
		}
		b.AddASN1(cbasn1.OCTET_STRING, value)
	})
}

// addKeyUsage writes the named bits, most significant first and without
// trailing zero bits, as DER asks of a BIT STRING with named bits.
func addKeyUsage(b *cryptobyte.Builder, usage x509.KeyUsage) {
	var bits byte // all usages that are given out lie in the first octet
	last := 0
	for i := range 8 {
		if usage&(1<<i) != 0 {
			bits |= 0x80 >> i
			last = i
		}
	}
	b.AddASN1(cbasn1.BIT_STRING, func(b *cryptobyte.Builder) { b.AddBytes([]byte{byte(7 - last), bits}) })
}

// addTime writes a Time: UTCTime through 2049, GeneralizedTime from 2050 (RFC
// 5280 section 4.1.2.5).
func addTime(b *cryptobyte.Builder, t time.Time) {
	if t = t.UTC(); t.Year() < 2050 {
		b.AddASN1UTCTime(t)
		return
	}
	b.AddASN1GeneralizedTime(t)
}

// Assemble returns the whole certificate in DER: TBS, its algorithm and the signature.
func Assemble(tbs, algorithm, signature []byte) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)+len(algorithm)+len(signature)+16))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		b.AddBytes(algorithm)
		b.AddASN1BitString(signature)
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("assembling certificate: %w", err)
	}
	return der, nil
}
