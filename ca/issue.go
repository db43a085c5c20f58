package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/ca/ledger"
	"github.com/hallmark-ca/hallmark/ca/profile"
)

// Request is what a front end adds to a grant: the key, and what the protocol
// says of the lifetime. Exactly one of CSR and Key is set.
type Request struct {
	ID    string           // of the request, for ledger and answer
	Door  string           // the front end, for the ledger
	CSR   []byte           // PKCS #10, PEM
	Key   crypto.PublicKey // of a key that this process made for the caller
	Floor time.Duration    // the door's shortest lifetime
	// Lifetime asked for; 0 asks for the profile's default. Negative ones are
	// refused.
	Lifetime time.Duration
}

// Issued is one certificate and what goes out with it, all of one Snapshot.
type Issued struct {
	DER       []byte
	Serial    string // lower-case hex
	NotBefore time.Time
	IssuedAt  time.Time // lifetimes count from here
	NotAfter  time.Time
	Snapshot  *Snapshot
	Facts     attest.Facts // what the certificate rests on; empty for our own
}

// LeafPEM returns the certificate alone in PEM, with its final newline.
func (i *Issued) LeafPEM() []byte { return encodeCertificate(i.DER) }

// FullChainPEM returns the leaf and every CA below the root, in PEM.
func (i *Issued) FullChainPEM() []byte { return append(i.LeafPEM(), i.Snapshot.tailPEM...) }

// Issue makes one certificate for the identity that grant proves. Errors are
// [*attest.DenyError], or ctx's own where the caller has gone.
func (a *Authority) Issue(ctx context.Context, grant *attest.Grant, req Request) (*Issued, error) {
	now := a.cfg.Now()
	// 1. The grant, once. It is spent also where what follows fails: facts age.
	facts, err := grant.Spend(now)
	if err != nil {
		return nil, attest.Deny(attest.InternalError, "", "%v", err)
	}
	// 2. The one snapshot that all of the answer comes from.
	snap := a.current.Load()
	if snap == nil {
		return nil, attest.Deny(attest.AuthorityNotReady, "", "no snapshot is installed")
	}
	// 3. The key, with proof that the caller holds its private half.
	identity := facts.Identity.String()
	pub, spki := req.Key, []byte(nil)
	if req.CSR != nil {
		if pub, spki, err = readCSR(req.CSR, identity); err != nil {
			return nil, err
		}
	} else if err := CheckKey(pub); err != nil {
		return nil, err
	}
	// 4. The validity.
	validity, err := a.validity(now, snap, req, facts.Provisional)
	if err != nil {
		return nil, err
	}
	// 5. The bytes to be signed, checked.
	serial, serialHex := newSerial()
	key, err := encodeKey(pub, spki)
	if err != nil {
		return nil, attest.Deny(attest.CSRKeyRefused, "", "%v", err)
	}
	ready, err := a.prepareChecked(snap, pub, leafCertificate(snap, identity, key, validity, serial))
	if err != nil {
		return nil, attest.Deny(attest.InternalError, "", "%v", err)
	}
	// 6. The intent, durable. From here the certificate counts as issued until
	// an outcome says otherwise.
	intent := &ledger.Intent{ID: req.ID, Time: validity.Issued, Serial: serialHex, Door: req.Door, Identity: identity}
	fillIntent(intent, snap, validity, key, ready)
	fillFacts(intent, &facts)
	// 7. The signature.
	der, err := a.record(ctx, intent, ready, snap)
	if err != nil {
		return nil, err
	}
	issued := &Issued{DER: der, Serial: serialHex, NotBefore: validity.NotBefore, IssuedAt: validity.Issued, NotAfter: validity.NotAfter, Snapshot: snap, Facts: facts}
	if a.cfg.Issued != nil {
		a.cfg.Issued(req.Door, issued)
	}
	return issued, nil
}

func (a *Authority) validity(now time.Time, snap *Snapshot, req Request, provisional bool) (profile.Validity, error) {
	var jitter [8]byte
	rand.Read(jitter[:])
	v, err := a.cfg.Leaf.Validity(now, profile.Ask{
		Lifetime: req.Lifetime, Floor: req.Floor, Provisional: provisional,
		IssuerEnds: snap.issuer.NotAfter, Jitter: binary.LittleEndian.Uint64(jitter[:]),
	})
	switch {
	case errors.Is(err, profile.ErrIssuerEnding):
		return v, attest.Deny(attest.IssuerEnding, "", "%v", err)
	case err != nil:
		return v, attest.Deny(attest.LifetimeInvalid, "", "%v", err)
	}
	if v.NotAfter.Equal(snap.issuer.NotAfter) {
		a.clipped.Inc()
		snap.clipped.Do(func() {
			a.cfg.Log.Warn("leaves end with their issuing CA: it should have been renewed by now", "authority", snap.AuthorityID(), "notAfter", snap.issuer.NotAfter)
		})
	}
	return v, nil
}

// leafCertificate fills in the X.509-SVID profile (X509-SVID sections 2 to 5):
// one URI SAN, empty subject, no CA, digitalSignature, both usages.
func leafCertificate(snap *Snapshot, identity string, key publicKey, v profile.Validity, serial *big.Int) *profile.Certificate {
	c := &profile.Certificate{Serial: serial, Subject: profile.EmptyName, URIs: []string{identity}}
	fillLeaf(snap, key, v, c)
	return c
}

func fillLeaf(snap *Snapshot, key publicKey, v profile.Validity, c *profile.Certificate) {
	c.NotBefore, c.NotAfter = v.NotBefore, v.NotAfter
	c.Issuer = snap.issuer.RawSubject
	c.Key, c.SubjectKeyID = key.spki, key.id
	c.AuthorityKeyID = snap.issuer.SubjectKeyId
	c.KeyUsage = x509.KeyUsageDigitalSignature
	c.ServerAndUser = true
}

// shape is what makes two certificates of one issuer alike to a lint.
type shape struct {
	kind    string
	bits    int
	serving bool
}

func shapeOf(pub crypto.PublicKey, c *profile.Certificate) shape {
	s := shape{serving: len(c.DNS)+len(c.IPs) > 0}
	switch key := pub.(type) {
	case *rsa.PublicKey:
		s.kind, s.bits = "RSA", key.N.BitLen()
	case *ecdsa.PublicKey:
		s.kind, s.bits = "ECDSA", key.Curve.Params().BitSize
	default:
		s.kind = "Ed25519"
	}
	return s
}

// prepareChecked runs our own checks on every certificate, and the slow lints
// on the first of its shape under this issuer.
func (a *Authority) prepareChecked(snap *Snapshot, pub crypto.PublicKey, c *profile.Certificate) (*prepared, error) {
	ready, err := prepare(c, snap.algorithm)
	if err != nil || a.cfg.LintShape == nil {
		return ready, err
	}
	s := shapeOf(pub, c)
	if _, seen := snap.shapes.Load(s); seen {
		return ready, nil
	}
	der, err := ready.unsigned()
	if err != nil {
		return nil, err
	}
	if err := a.cfg.LintShape(der); err != nil {
		return nil, fmt.Errorf("linting the first certificate of its shape: %w", err)
	}
	snap.shapes.Store(s, struct{}{})
	return ready, nil
}

// record makes the intent durable, signs, and records the outcome. If the
// process dies between the two records, the ledger says "may have been issued".
func (a *Authority) record(ctx context.Context, intent *ledger.Intent, ready *prepared, snap *Snapshot) ([]byte, error) {
	if err := a.cfg.Ledger.Append(ctx, intent); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, attest.Deny(attest.LedgerUnwritable, "", "%v", err)
	}
	outcome := ledger.Outcome{ID: intent.ID, Serial: intent.Serial, Time: a.cfg.Now().UTC()}
	if err := ctx.Err(); err != nil { // nobody waits for it any more
		outcome.Status, outcome.Detail = ledger.Abandoned, err.Error()
		a.cfg.Ledger.Finish(outcome)
		return nil, err
	}
	der, err := ready.sign(snap.signer)
	if err != nil {
		outcome.Status, outcome.Detail = ledger.Failed, err.Error()
		a.cfg.Ledger.Finish(outcome)
		return nil, attest.Deny(attest.AuthorityNotReady, "", "%v", err)
	}
	outcome.Status, outcome.CertSHA256 = ledger.Issued, hexSHA256(der)
	a.cfg.Ledger.Finish(outcome)
	return der, nil
}

func fillIntent(i *ledger.Intent, snap *Snapshot, v profile.Validity, key publicKey, ready *prepared) {
	i.Authority, i.Root = snap.AuthorityID(), snap.RootID()
	i.NotBefore, i.NotAfter = v.NotBefore, v.NotAfter
	i.KeySHA256, i.TBSSHA256 = hexSHA256(key.spki), hexSHA256(ready.tbs)
}

func fillFacts(i *ledger.Intent, facts *attest.Facts) {
	c := facts.Caller
	i.Cluster, i.Namespace, i.Pod, i.PodUID, i.Node = c.Cluster, c.Pod.Namespace, c.Pod.Name, c.Pod.UID, c.Node
	i.Method, i.Provisional = c.Method.String(), facts.Provisional
	fillImages(i, facts.Images)
}

// fillImages notes each decision once, however many containers it is about.
func fillImages(i *ledger.Intent, decided []attest.ImageEvidence) {
	i.Images = make([]ledger.Image, 0, min(len(decided), ledger.MaxImages))
	var more []ledger.Image
	for n := range decided {
		image := imageOf(&decided[n])
		switch alike := findAlike(i.Images, &image); {
		case alike != nil:
			alike.Alike++
		case len(i.Images) < ledger.MaxImages:
			i.Images = append(i.Images, image)
		default:
			more = append(more, image)
		}
	}
	if len(more) > 0 {
		i.MoreImages = len(more)
		i.ImagesSHA256 = ledger.HashImages(append(slices.Clone(i.Images), more...))
	}
}

func findAlike(images []ledger.Image, like *ledger.Image) *ledger.Image {
	for n := range images {
		m := &images[n]
		if m.Image == like.Image && m.Digest == like.Digest && m.Verdict == like.Verdict && m.Reason == like.Reason &&
			m.Authority == like.Authority && m.Signer == like.Signer && slices.Equal(m.Policies, like.Policies) {
			return m
		}
	}
	return nil
}

func imageOf(e *attest.ImageEvidence) ledger.Image {
	image := ledger.Image{
		Container: e.Container, Image: e.Image, Digest: e.Digest, Verdict: e.Verdict.String(),
		Policies: e.Policies, Authority: e.Authority, Signer: e.Signer,
	}
	if e.Reason != 0 {
		image.Reason = e.Reason.String()
	}
	return image
}
