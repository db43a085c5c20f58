package profile_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/hallmark-ca/hallmark/ca/catest"
	"github.com/hallmark-ca/hallmark/ca/profile"
)

// issuers are an authority of each kind, with its Name.
type issuer struct {
	key       crypto.Signer
	algorithm profile.Algorithm
	name      []byte
}

func issuers(tb testing.TB) []issuer {
	tb.Helper()
	var out []issuer
	for _, k := range catest.AuthorityKeys(tb) {
		algorithm, err := profile.AlgorithmFor(k.Key.Public())
		if err != nil {
			tb.Fatal(err)
		}
		name, err := asn1.Marshal(pkix.Name{Organization: []string{"cluster.local"}, CommonName: "Hallmark issuing CA " + k.Name}.ToRDNSequence())
		if err != nil {
			tb.Fatal(err)
		}
		out = append(out, issuer{k.Key, algorithm, name})
	}
	return out
}

// usages are those that are given out; the first octet holds all of them.
const usages = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageCertSign | x509.KeyUsageCRLSign

// FuzzTBS compares our to-be-signed bytes with those of x509.CreateCertificate,
// byte by byte. The differences that are meant are kept out of the comparison:
//
//   - the library derives a CA's missing subject key identifier from SHA-1,
//     and leaves key usage and identifiers out where they are empty; ours always
//     have them, so the inputs do;
//   - the library takes the authority key identifier from the template where
//     issuer and subject have one name; ours takes what it is given;
//   - the library refuses names that are no IA5 strings; ours writes them, and
//     the checks (ca/lint) refuse the bytes;
//   - the library takes years before 1950.
func FuzzTBS(f *testing.F) {
	f.Add([]byte("\x4a0123456789abcde"), int64(1_780_000_000), int64(21600), "shop", "web", "", []byte{}, uint16(1), true, false, int8(-1), []byte("subject key id 20 ch"), []byte("issuer key id 20 byt"), byte(0), byte(0))
	f.Add([]byte{1}, int64(2_524_607_990), int64(20), "a", "b", "hallmark.example", []byte{127, 0, 0, 1}, uint16(1), true, false, int8(-1), []byte{1}, []byte{2}, byte(1), byte(3))
	f.Add([]byte{0xff, 0xff}, int64(0), int64(157_680_000), "", "", "", []byte{}, uint16(96), false, true, int8(1), []byte{1}, []byte{}, byte(2), byte(5))
	f.Add([]byte{0x80}, int64(1), int64(1), "", "", "x", bytes.Repeat([]byte{1}, 16), uint16(5), true, true, int8(0), []byte{3}, []byte{4}, byte(0), byte(6))
	all := issuers(f)
	leaves := catest.LeafKeys(f)
	f.Fuzz(func(t *testing.T, serial []byte, from, life int64, namespace, account, dns string, ip []byte, usage uint16, user, isCA bool, pathLen int8, ski, aki []byte, by, of byte) {
		number := new(big.Int).SetBytes(serial)
		const lastSecond = 253402300799 // of the year 9999
		if number.Sign() == 0 || number.BitLen() > 159 || from < 0 || life < 0 || from > lastSecond || life > lastSecond-from ||
			x509.KeyUsage(usage)&usages == 0 || len(ski) == 0 {
			return
		}
		i, key := all[int(by)%len(all)], leaves[int(of)%len(leaves)].Key.Public()
		spki, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		c := &profile.Certificate{
			Serial: number, NotBefore: time.Unix(from, 0).UTC(), NotAfter: time.Unix(from+life, 0).UTC(),
			Algorithm: i.algorithm.ID, Issuer: i.name, Subject: profile.EmptyName, Key: spki,
			KeyUsage: x509.KeyUsage(usage) & usages, ServerAndUser: user, CA: isCA, PathLen: max(-1, int(pathLen)),
			SubjectKeyID: ski, AuthorityKeyID: aki,
		}
		template := &x509.Certificate{
			SerialNumber: number, NotBefore: c.NotBefore, NotAfter: c.NotAfter, RawSubject: profile.EmptyName,
			KeyUsage: c.KeyUsage, BasicConstraintsValid: true, IsCA: isCA, SubjectKeyId: ski, SignatureAlgorithm: i.algorithm.X509,
		}
		if user {
			template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		}
		if isCA {
			c.Subject, template.RawSubject = i.name[:len(i.name):len(i.name)], i.name
			template.AuthorityKeyId = aki // the names are the same
			template.MaxPathLen, template.MaxPathLenZero = c.PathLen, c.PathLen == 0
		}
		if namespace != "" {
			uri := &url.URL{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/" + namespace + "/sa/" + account}
			c.URIs, template.URIs = []string{uri.String()}, []*url.URL{uri}
		}
		if dns != "" {
			c.DNS, template.DNSNames = []string{dns}, []string{dns}
		}
		if len(ip) == 4 || len(ip) == 16 {
			c.IPs, template.IPAddresses = []net.IP{ip}, []net.IP{ip}
		}
		der, err := x509.CreateCertificate(rand.Reader, template, &x509.Certificate{RawSubject: i.name, SubjectKeyId: aki}, key, i.key)
		ours, ourErr := c.TBS()
		if err != nil {
			return // no certificate of that kind: nothing to compare
		}
		if ourErr != nil {
			t.Fatalf("the library makes it, and ours says %v", ourErr)
		}
		made, err := x509.ParseCertificate(der)
		if err != nil {
			return // made, and refused by the library's own parser
		}
		if !bytes.Equal(made.RawTBSCertificate, ours) {
			t.Errorf("to-be-signed bytes differ:\nlibrary %x\nours    %x", made.RawTBSCertificate, ours)
		}
		whole, err := profile.Assemble(ours, i.algorithm.ID, made.Signature)
		if err != nil || !bytes.Equal(whole, der) {
			t.Errorf("the whole certificate differs (%v)", err)
		}
	})
}

func TestAlgorithms(t *testing.T) {
	for _, k := range catest.AuthorityKeys(t) {
		if _, err := profile.AlgorithmFor(k.Key.Public()); err != nil {
			t.Errorf("%s: %v", k.Name, err)
		}
	}
	weak := map[string]crypto.PublicKey{"nothing": nil, "RSA-2048": catest.RSA(t, 2048).Public()}
	for _, k := range catest.LeafKeys(t) {
		if k.Name == "P-521" || k.Name == "Ed25519" {
			weak[k.Name] = k.Key.Public()
		}
	}
	for name, key := range weak {
		if _, err := profile.AlgorithmFor(key); err == nil {
			t.Errorf("an authority on %s is taken", name)
		}
	}
}

// What cannot be written is an error, not another certificate.
func TestTBSErrors(t *testing.T) {
	c := &profile.Certificate{Serial: big.NewInt(1), NotBefore: time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Now(), Issuer: profile.EmptyName, Subject: profile.EmptyName}
	if _, err := c.TBS(); err == nil {
		t.Error("a certificate of the year 1900 was written")
	}
	c.NotBefore, c.NotAfter = time.Now(), time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	if _, err := c.TBS(); err == nil {
		t.Error("a certificate up to the year 10000 was written")
	}
}
