package signing_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing"
	"github.com/hallmark-ca/hallmark/signing/evidence"
	"github.com/hallmark-ca/hallmark/signing/policy"
)

func have(e *evidence.Evidence) signing.Proof { return signing.Proof{Evidence: e} }

func without(r attest.Reason) signing.Proof { return signing.Proof{Absent: r, Detail: "told so"} }

func TestDecide(t *testing.T) {
	t.Parallel()
	good, other, third := newSigner(), newSigner(), newSigner()

	child1, config1 := manifest("arm")
	child2, _ := manifest("amd")
	foreign, _ := manifest("foreign")
	both := [][]byte{index(child1, child2), child1, child2}
	idx := evidence.DigestOf(both[0])
	c1 := evidence.DigestOf(child1)
	f1 := evidence.DigestOf(foreign)
	signedIndex := collected(repo, both, good.bundle(idx))
	plainIndex := collected(repo, both)
	childSigned := collected(repo, [][]byte{child1}, good.bundle(c1))
	childPlain := collected(repo, [][]byte{child1})
	foreignSigned := collected(repo, [][]byte{foreign}, good.bundle(f1))
	foreignPlain := collected(repo, [][]byte{foreign})
	foreignOther := collected(repo, [][]byte{foreign}, other.bundle(f1))
	single := image("single", good)
	d := single.Subject.Digest
	_, configSingle := manifest("single")
	unsigned := image("single")
	elsewhere := collected("ghcr.io/org/lax", [][]byte{must2(manifest("single"))}, good.bundle(d))
	skipped := image("single")
	skipped.Skipped = []string{"referrer sha256:00: not JSON"}

	signed := func(sigs ...evidence.Signature) signing.Proof {
		e := *unsigned
		e.Signatures = sigs
		return have(&e)
	}
	incomplete := func(e *evidence.Evidence) *evidence.Evidence {
		cut := *e
		cut.Incomplete = true
		return &cut
	}
	partial := func(sigs ...evidence.Signature) signing.Proof {
		return have(incomplete(signed(sigs...).Evidence))
	}
	attested := signed(good.statement(d, "https://spdx.dev/Document"))
	spoilt := good.bundle(d)
	spoilt.Bundle = []byte(strings.Replace(string(spoilt.Bundle), `"sig":"ME`, `"sig":"MF`, 1))

	glob := "ghcr.io/org/**"
	keyPolicy := cip("signed", glob, authorities(byKey("release", good)))
	at := func(digest string) string { return repo + "@" + digest }
	tag := repo + ":v1"
	none := signing.Proof{}

	rows := []struct {
		name           string
		image, imageID string
		policies       []string
		named, own     signing.Proof
		want           signing.Outcome
		reason         attest.Reason
		digest         string // "" is not looked at
	}{
		// What a policy needs no evidence for.
		{"no policy at all", at(d), at(d), nil, none, none, signing.Deny, attest.ImageNoPolicy, d},
		{"no policy for this name", at(d), at(d), []string{cip("p", "quay.io/**", authorities(byKey("k", good)))}, have(single), none, signing.Deny, attest.ImageNoPolicy, d},
		{"static pass", tag, "", []string{cip("p", glob, authorities(byStatic("s", "pass")))}, none, none, signing.Allow, 0, ""},
		{"static pass, whatever runs", at(d), at(f1), []string{cip("p", glob, authorities(byStatic("s", "pass")))}, none, none, signing.Allow, 0, f1},
		{"static pass, unreadable imageID", at(d), "junk", []string{cip("p", glob, authorities(byStatic("s", "pass")))}, none, none, signing.Allow, 0, d},
		{"static fail", at(d), at(d), []string{cip("p", glob, authorities(byStatic("s", "fail")))}, have(single), none, signing.Deny, attest.ImagePolicyFailed, d},
		{"static fail only warns", at(d), at(d), []string{cip("p", glob, authorities(byStatic("s", "fail")), warn)}, none, none, signing.WouldDeny, attest.ImagePolicyFailed, d},
		{"fail or pass", at(d), at(d), []string{cip("p", glob, authorities(byStatic("f", "fail"), byStatic("s", "pass")))}, none, none, signing.Allow, 0, d},
		{"key or pass needs no proof", at(d), at(d), []string{cip("p", glob, authorities(byKey("k", good), byStatic("s", "pass")))}, none, none, signing.Allow, 0, d},
		{"unusable", at(d), at(d), []string{cip("p", glob, authorities("  - keyless: {url: https://fulcio.example}\n"))}, have(single), none, signing.Deny, attest.ImagePolicyUnusable, d},
		{"unusable only warns", at(d), at(d), []string{cip("p", glob, authorities("  - keyless: {}\n"), warn)}, have(single), none, signing.WouldDeny, attest.ImagePolicyUnusable, d},
		{"unusable beside one that passes", at(d), at(d), []string{keyPolicy, cip("p", glob, authorities(byKey("k", good, "    ctlog: {}\n")))}, have(single), none, signing.Deny, attest.ImagePolicyUnusable, d},
		{"a file that is no YAML", at(d), at(d), []string{keyPolicy, "{\n"}, have(single), none, signing.Deny, attest.ImagePolicyUnusable, d},
		{"a fault of one policy does not wait for the proof of another", at(d), at(d), []string{keyPolicy, cip("p", glob, authorities(byStatic("s", "fail")))}, none, none, signing.Deny, attest.ImagePolicyFailed, d},

		// One digest, signed or not.
		{"bundle", at(d), at(d), []string{keyPolicy}, have(single), none, signing.Allow, 0, d},
		{"bundle, before it runs", at(d), "", []string{keyPolicy}, have(single), none, signing.Allow, 0, d},
		{"legacy", at(d), at(d), []string{keyPolicy}, signed(good.legacy(d)), none, signing.Allow, 0, d},
		{"tag beside the digest", repo + ":v1@" + d, at(d), []string{keyPolicy}, have(single), none, signing.Allow, 0, d},
		{"docker-pullable", at(d), "docker-pullable://" + at(d), []string{keyPolicy}, have(single), none, signing.Allow, 0, d},
		{"the repository of the imageID does not count", at(d), "evil.example/x@" + d, []string{keyPolicy}, have(single), none, signing.Allow, 0, d},
		{"nothing asked yet", at(d), at(d), []string{keyPolicy}, none, none, signing.Deny, attest.EvidencePending, d},
		{"unsigned", at(d), at(d), []string{keyPolicy}, have(unsigned), none, signing.Deny, attest.ImageUnsigned, d},
		{"nothing that can be read", at(d), at(d), []string{keyPolicy}, have(skipped), none, signing.Deny, attest.ImageUnsigned, d},
		{"wrong key", at(d), at(d), []string{keyPolicy}, signed(other.bundle(d)), none, signing.Deny, attest.ImageSignatureInvalid, d},
		{"wrong key, legacy", at(d), at(d), []string{keyPolicy}, signed(other.legacy(d)), none, signing.Deny, attest.ImageSignatureInvalid, d},
		{"signature of another digest", at(d), at(d), []string{keyPolicy}, signed(good.bundle(f1)), none, signing.Deny, attest.ImageSignatureInvalid, d},
		{"signature of another digest, legacy", at(d), at(d), []string{keyPolicy}, signed(good.legacy(f1)), none, signing.Deny, attest.ImageSignatureInvalid, d},
		{"an SBOM is no signature", at(d), at(d), []string{keyPolicy}, attested, none, signing.Deny, attest.ImageSignatureInvalid, d},
		{"changed after signing", at(d), at(d), []string{keyPolicy}, signed(spoilt), none, signing.Deny, attest.ImageSignatureInvalid, d},
		{"junk", at(d), at(d), []string{keyPolicy}, signed(evidence.Signature{Format: evidence.FormatBundle, Bundle: []byte("{")}), none, signing.Deny, attest.ImageSignatureInvalid, d},
		{"junk before the good one", at(d), at(d), []string{keyPolicy}, signed(evidence.Signature{Format: evidence.FormatBundle, Bundle: []byte("{")}, other.bundle(d), good.bundle(d)), none, signing.Allow, 0, d},
		{"junk behind the good one", at(d), at(d), []string{keyPolicy}, signed(good.bundle(d), evidence.Signature{Format: evidence.FormatLegacy}), none, signing.Allow, 0, d},
		{"not found", at(d), at(d), []string{keyPolicy}, without(attest.ImageNotFound), none, signing.Deny, attest.ImageNotFound, d},
		{"registry away", at(d), at(d), []string{keyPolicy}, without(attest.RegistryAway), none, signing.Deny, attest.RegistryAway, d},
		{"evidence of another repository", at(d), at(d), []string{keyPolicy}, have(elsewhere), none, signing.Deny, attest.InternalError, d},
		{"evidence of another digest", at(d), at(d), []string{keyPolicy}, have(foreignSigned), none, signing.Deny, attest.InternalError, d},

		// Formats, authorities, policies.
		{"legacy only, bundle there", at(d), at(d), []string{cip("p", glob, authorities(byKey("k", good, "    signatureFormat: legacy\n")))}, have(single), none, signing.Deny, attest.ImageUnsigned, d},
		{"legacy only, legacy there", at(d), at(d), []string{cip("p", glob, authorities(byKey("k", good, "    signatureFormat: legacy\n")))}, signed(good.legacy(d)), none, signing.Allow, 0, d},
		{"bundle only, legacy there", at(d), at(d), []string{cip("p", glob, authorities(byKey("k", good, "    signatureFormat: bundle\n")))}, signed(good.legacy(d)), none, signing.Deny, attest.ImageUnsigned, d},
		{"one of two authorities", at(d), at(d), []string{cip("p", glob, authorities(byKey("a", other), byKey("b", good)))}, have(single), none, signing.Allow, 0, d},
		{"none of two authorities", at(d), at(d), []string{cip("p", glob, authorities(byKey("a", other), byKey("b", third)))}, have(single), none, signing.Deny, attest.ImageSignatureInvalid, d},
		{"static fail or key", at(d), at(d), []string{cip("p", glob, authorities(byStatic("f", "fail"), byKey("k", good)))}, have(single), none, signing.Allow, 0, d},
		{"static fail or key, unsigned", at(d), at(d), []string{cip("p", glob, authorities(byStatic("f", "fail"), byKey("k", good)))}, have(unsigned), none, signing.Deny, attest.ImageUnsigned, d},
		{"two policies, both pass", at(d), at(d), []string{keyPolicy, cip("second", glob, authorities(byKey("k", other)))}, signed(good.bundle(d), other.bundle(d)), none, signing.Allow, 0, d},
		{"two policies, one passes", at(d), at(d), []string{keyPolicy, cip("second", glob, authorities(byKey("k", other)))}, have(single), none, signing.Deny, attest.ImageSignatureInvalid, d},
		{"a laxer policy beside it opens nothing", at(d), at(d), []string{keyPolicy, cip("lax", "**", authorities(byStatic("s", "pass")))}, have(unsigned), none, signing.Deny, attest.ImageUnsigned, d},
		{"warns alone", at(d), at(d), []string{cip("p", glob, authorities(byKey("k", good)), warn)}, have(unsigned), none, signing.WouldDeny, attest.ImageUnsigned, d},
		{"warns and passes", at(d), at(d), []string{cip("p", glob, authorities(byKey("k", good)), warn)}, have(single), none, signing.Allow, 0, d},
		{"warns, and its registry is away", at(d), at(d), []string{cip("p", glob, authorities(byKey("k", good)), warn)}, without(attest.RegistryAway), none, signing.WouldDeny, attest.RegistryAway, d},
		{"one warns, one refuses", at(d), at(d), []string{cip("p", glob, authorities(byStatic("f", "fail")), warn), cip("q", glob, authorities(byKey("k", good)))}, have(unsigned), none, signing.Deny, attest.ImageUnsigned, d},
		{"wrong key, and more may be there than could be read", at(d), at(d), []string{keyPolicy}, partial(other.bundle(d)), none, signing.Deny, attest.RegistryAway, d},
		{"right key, and more may be there", at(d), at(d), []string{keyPolicy}, partial(good.bundle(d)), none, signing.Allow, 0, d},
		{"what runs beside the spec could not be read whole", at(d), repo + "@" + f1, []string{keyPolicy}, have(single), have(incomplete(foreignOther)), signing.Deny, attest.RegistryAway, f1},
		{"one warns, one passes", at(d), at(d), []string{cip("p", glob, authorities(byKey("k", other)), warn), keyPolicy}, have(single), none, signing.WouldDeny, attest.ImageSignatureInvalid, d},

		// What runs beside the digest that the spec pins.
		{"child of the signed index", at(idx), at(c1), []string{keyPolicy}, have(signedIndex), none, signing.Allow, 0, c1},
		{"child of an unsigned index", at(idx), at(c1), []string{keyPolicy}, have(plainIndex), have(childPlain), signing.Deny, attest.ImageUnsigned, c1},
		{"child that is signed itself, unsigned index", at(idx), at(c1), []string{keyPolicy}, have(plainIndex), have(childSigned), signing.Allow, 0, c1},
		{"a child's signature does not make the index pass", at(idx), at(idx), []string{keyPolicy}, have(plainIndex), have(childSigned), signing.Deny, attest.ImageUnsigned, idx},
		{"child not listed", at(idx), at(f1), []string{keyPolicy}, have(signedIndex), have(foreignPlain), signing.Deny, attest.ImageIDUnknown, f1},
		{"child not listed, of another key", at(idx), at(f1), []string{keyPolicy}, have(signedIndex), have(foreignOther), signing.Deny, attest.ImageIDUnknown, f1},
		{"child not listed, signed itself", at(idx), at(f1), []string{keyPolicy}, have(signedIndex), have(foreignSigned), signing.Allow, 0, f1},
		{"child not listed, not in the registry", at(idx), at(f1), []string{keyPolicy}, have(signedIndex), without(attest.ImageNotFound), signing.Deny, attest.ImageIDUnknown, f1},
		{"child not listed, registry away", at(idx), at(f1), []string{keyPolicy}, have(signedIndex), without(attest.RegistryAway), signing.Deny, attest.RegistryAway, f1},
		{"child not listed, not asked yet", at(idx), at(f1), []string{keyPolicy}, have(signedIndex), none, signing.Deny, attest.EvidencePending, f1},
		{"spec's digest away, what runs is signed", at(idx), at(c1), []string{keyPolicy}, without(attest.RegistryAway), have(childSigned), signing.Allow, 0, c1},
		{"spec's digest away, what runs is not signed", at(idx), at(c1), []string{keyPolicy}, without(attest.RegistryAway), have(childPlain), signing.Deny, attest.RegistryAway, c1},
		{"neither is in the registry", at(idx), at(c1), []string{keyPolicy}, without(attest.ImageNotFound), without(attest.ImageNotFound), signing.Deny, attest.ImageNotFound, c1},
		{"configuration of the signed image", at(d), "sha256:" + configSingle[7:], []string{keyPolicy}, have(single), none, signing.Allow, 0, d},
		{"configuration of a child of the signed index", at(idx), config1, []string{keyPolicy}, have(signedIndex), none, signing.Allow, 0, idx},
		{"configuration, bare hex", at(d), configSingle[7:], []string{keyPolicy}, have(single), none, signing.Allow, 0, d},
		{"configuration of an unsigned image", at(d), configSingle, []string{keyPolicy}, have(unsigned), none, signing.Deny, attest.ImageUnsigned, d},
		{"configuration of nothing known", at(d), config1, []string{keyPolicy}, have(single), none, signing.Deny, attest.ImageIDUnknown, config1},
		{"a warning only, and what runs is not known", at(idx), at(f1), []string{cip("p", glob, authorities(byKey("k", good)), warn)}, have(signedIndex), have(foreignPlain), signing.WouldDeny, attest.ImageUnsigned, f1},
		{"imageID of sha512", at(d), repo + "@sha512:" + strings.Repeat("0", 128), []string{keyPolicy}, have(single), none, signing.Deny, attest.ImageIDUnknown, d},
		{"imageID that is junk", at(d), "<none>", []string{keyPolicy}, have(single), none, signing.Deny, attest.ImageIDUnknown, d},

		// Tags.
		{"tag, resolved, signed", tag, "", []string{keyPolicy}, have(single), none, signing.Allow, 0, d},
		{"tag, resolved, unsigned", tag, "", []string{keyPolicy}, have(unsigned), none, signing.Deny, attest.ImageUnsigned, d},
		{"tag, not asked yet", tag, "", []string{keyPolicy}, none, none, signing.Deny, attest.EvidencePending, ""},
		{"tag, nowhere", tag, "", []string{keyPolicy}, without(attest.ImageNotFound), none, signing.Deny, attest.ImageNotFound, ""},
		{"tag that runs, signed", tag, at(d), []string{keyPolicy}, none, have(single), signing.Allow, 0, d},
		{"tag that runs, registry away, signed", tag, at(d), []string{keyPolicy}, without(attest.RegistryAway), have(single), signing.Allow, 0, d},
		{"tag that moved to an unsigned image", tag, at(f1), []string{keyPolicy}, have(foreignPlain), have(foreignPlain), signing.Deny, attest.ImageUnsigned, f1},
		{"tag that moved on, the old one runs unsigned", tag, at(f1), []string{keyPolicy}, have(single), have(foreignPlain), signing.Deny, attest.ImageUnsigned, f1},
		{"tag of an index, a child runs", tag, at(c1), []string{keyPolicy}, have(signedIndex), have(childPlain), signing.Allow, 0, c1},
		{"tag of an index, its configuration runs", tag, config1, []string{keyPolicy}, have(signedIndex), none, signing.Allow, 0, idx},
		{"tag, what runs is in no registry", tag, at(f1), []string{keyPolicy}, have(single), without(attest.ImageNotFound), signing.Deny, attest.ImageIDUnknown, f1},
		{"tag, unsigned, and where it points is not known", tag, at(f1), []string{keyPolicy}, without(attest.RegistryAway), have(foreignPlain), signing.Deny, attest.RegistryAway, f1},
	}
	if len(rows) < 60 {
		t.Fatalf("%d rows", len(rows))
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			img := must(policy.ParseImage(row.image))
			q := signing.Question{
				Image: img, Running: signing.ParseImageID(row.imageID), Named: row.named, Own: row.own,
				Policies: compile(row.policies...).Match(img, policy.Facts{}),
			}
			got := signing.Decide(q)
			if got.Outcome != row.want || got.Reason != row.reason {
				t.Fatalf("got %s %s (%s), want %s %s", got.Outcome, got.Reason, got.Detail, row.want, row.reason)
			}
			if row.digest != "" && got.Digest != row.digest {
				t.Errorf("judged %s, want %s", got.Digest, row.digest)
			}
			if (got.Reason == 0) != (got.Outcome == signing.Allow) {
				t.Errorf("outcome %s with reason %s", got.Outcome, got.Reason)
			}
			if diff := cmp.Diff(got, signing.Decide(q), cmp.AllowUnexported(signing.Decision{})); diff != "" {
				t.Errorf("asked twice:\n%s", diff)
			}
		})
	}
}

func must2(raw []byte, _ string) []byte { return raw }

// What passes says by whom.
func TestDecideNames(t *testing.T) {
	t.Parallel()
	a, b := newSigner(), newSigner()
	e := image("x", a, b)
	set := compile(
		cip("one", "ghcr.io/**", authorities(byKey("first", newSigner()), byKey("release", a))),
		cip("three", "**", authorities(byStatic("everybody", "pass"))),
		cip("two", "**", authorities(byKey("", b))),
	)
	img := must(policy.ParseImage(e.Subject.String()))
	got := signing.Decide(signing.Question{Image: img, Named: have(e), Policies: set.Match(img, policy.Facts{})})
	want := signing.Decision{
		Outcome: signing.Allow, Digest: e.Subject.Digest, Object: "image " + e.Subject.String(),
		Policies: []string{"one", "three", "two"}, Authority: "one/release, three/everybody, two/authority-0",
		Signer: a.name() + ", " + b.name(), Hash: policy.HashOf(set.Policies()),
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(signing.Decision{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A refusal is for operators to read, and bounded.
func TestDecideDetail(t *testing.T) {
	t.Parallel()
	good := newSigner()
	e := image("x")
	for i := range 60 {
		e.Signatures = append(e.Signatures, evidence.Signature{Format: evidence.FormatBundle, Source: fmt.Sprint(i), Bundle: []byte(strings.Repeat("\x00\x1b[31m", 200))})
	}
	e.Skipped = []string{strings.Repeat("x", 10_000)}
	img := must(policy.ParseImage(e.Subject.String()))
	got := signing.Decide(signing.Question{Image: img, Named: have(e), Policies: compile(cip("p", "**", authorities(byKey("k", good)))).Match(img, policy.Facts{})})
	if got.Outcome != signing.Deny || len(got.Detail) > 4096 || strings.ContainsAny(got.Detail, "\x00\x1b") {
		t.Errorf("%s, %d bytes: %q", got.Outcome, len(got.Detail), got.Detail)
	}
}
