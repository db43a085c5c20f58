package policy

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	kjson "sigs.k8s.io/json"

	"github.com/hallmark-ca/hallmark/attest"
	"github.com/hallmark-ca/hallmark/signing/evidence"
	"github.com/hallmark-ca/hallmark/signing/sigstore"
)

const (
	maxAuthorities = 64   // in one policy
	maxMessage     = 1024 // bytes of static.message
)

var (
	policyName    = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)
	authorityName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9 ._-]{0,126}[A-Za-z0-9])?$`)
	unknownField  = regexp.MustCompile(`unknown field "([^"]*)"`)
)

// compiler turns one document into a policy and gathers what is wrong.
type compiler struct {
	file     string
	policy   string
	problems []Problem
	wrong    int // of these, without warnings
}

func (c *compiler) add(path, text, mend string) {
	c.wrong++
	c.problems = append(c.problems, Problem{File: c.file, Policy: c.policy, Path: path, Text: text, Mend: mend})
}

func (c *compiler) warn(path, text, mend string) {
	c.problems = append(c.problems, Problem{File: c.file, Policy: c.policy, Path: path, Text: text, Mend: mend, Warning: true})
}

// unknownYet refuses by name what upstream has and this release does not.
func (c *compiler) unknownYet(path string, raw json.RawMessage) {
	if given(raw) {
		c.add(path, "this release does not know it yet", "take it out, or keep the policy out of the folder until a release knows it")
	}
}

// broken makes the policy of what cannot be read as one: it names everything.
func broken(file, name string, problems []Problem, content []byte) *Policy {
	return seal(&Policy{name: name, file: file, globs: []glob{everything}}, problems, content)
}

// seal gives p its hash, and makes it unusable if there is any problem that is
// no warning.
func seal(p *Policy, problems []Problem, content []byte) *Policy {
	for _, problem := range problems {
		if problem.Warning {
			continue
		}
		if p.unusable != "" {
			p.unusable += "; "
		}
		p.unusable += strings.TrimPrefix(problem.Path+": "+problem.Text, ": ")
	}
	if len(p.unusable) > maxMessage {
		p.unusable = p.unusable[:maxMessage] + "…"
	}
	h := sha256.New()
	for _, part := range [][]byte{[]byte(p.name), []byte(p.unusable), content} {
		fmt.Fprintf(h, "%d:", len(part))
		h.Write(part)
	}
	h.Sum(p.hash[:0])
	return p
}

// compile reads one document, as JSON. ordinal counts the documents of the file
// from 1. The policy is nil for a document that names no images by its kind.
func compile(file string, ordinal int, content []byte) (*Policy, []Problem) {
	c := &compiler{file: file}
	var doc rawDocument
	strict, err := kjson.UnmarshalStrict(content, &doc)
	if err != nil {
		return c.unreadable(ordinal, content, err)
	}
	p := &Policy{file: file, name: c.name(ordinal, doc.Metadata.Name)}
	for _, unknown := range strict {
		if m := unknownField.FindStringSubmatch(unknown.Error()); m != nil {
			c.add(m[1], "the field is not known", "correct its spelling (case counts), or take it out")
			continue
		}
		c.add("", unknown.Error(), "correct the YAML")
	}
	if doc.Kind == "TrustRoot" && strings.HasPrefix(doc.APIVersion, "policy.sigstore.dev/") {
		// Its spec is another one: what was found unknown in it says nothing.
		c.problems = nil
		c.warn("kind", "this release does not know trust roots yet", "nothing, as long as no policy refers to it; one that does cannot be used")
		return nil, c.problems
	}
	if doc.Kind != "ClusterImagePolicy" {
		c.add("kind", show(doc.Kind)+" is not ClusterImagePolicy", "keep nothing but policies in the folder; what this should have been cannot be known")
		return broken(file, p.name, c.problems, content), c.problems
	}
	if doc.APIVersion != "policy.sigstore.dev/v1beta1" && doc.APIVersion != "policy.sigstore.dev/v1alpha1" {
		c.add("apiVersion", show(doc.APIVersion)+" is not known", "write policy.sigstore.dev/v1beta1")
	}
	c.spec(p, &doc.Spec)
	spec, err := json.Marshal(&doc.Spec)
	if err != nil {
		c.add("spec", err.Error(), "correct the YAML")
	}
	return seal(p, c.problems, spec), c.problems
}

// unreadable makes a policy of a document in which some value is of the wrong
// kind. What it names and whether it only warns is read by itself.
func (c *compiler) unreadable(ordinal int, content []byte, err error) (*Policy, []Problem) {
	var names rawNames
	lenient := json.Unmarshal(content, &names)
	name, _ := names.Metadata.Name.(string)
	p := &Policy{file: c.file, name: c.name(ordinal, name)}
	if wrong := (*json.UnmarshalTypeError)(nil); errors.As(err, &wrong) {
		c.add(wrong.Field, "it is a "+wrong.Value+", and a "+wrong.Type.Kind().String()+" is wanted", "correct the value; a text that looks like a number or a boolean (n, on, 1.0) needs quotes")
	} else {
		c.add("", err.Error(), "correct the YAML")
	}
	if lenient != nil {
		return broken(c.file, p.name, c.problems, content), c.problems
	}
	c.images(p, names.Spec.Images)
	p.warn = names.Spec.Mode == "warn"
	return seal(p, c.problems, content), c.problems
}

func (c *compiler) name(ordinal int, name string) string {
	if policyName.MatchString(name) {
		c.policy = name
		return name
	}
	c.add("metadata.name", show(name)+" is no name", "write lower-case letters, digits, dots and dashes")
	return c.file + "#" + strconv.Itoa(ordinal)
}

func (c *compiler) spec(p *Policy, s *rawSpec) {
	c.images(p, s.Images)
	switch s.Mode {
	case "", "enforce":
	case "warn":
		p.warn = true
	default:
		c.add("spec.mode", show(s.Mode)+" is not known", "write enforce or warn")
	}
	c.unknownYet("spec.policy", s.Policy)
	p.match = c.matches(s.Match)
	if len(s.Authorities) == 0 || len(s.Authorities) > maxAuthorities {
		c.add("spec.authorities", fmt.Sprintf("there are %d, and 1 to %d are wanted", len(s.Authorities), maxAuthorities), "name who may sign")
		return
	}
	seen := map[string]bool{}
	for n := range s.Authorities {
		a := c.authority(n, &s.Authorities[n])
		if seen[a.name] {
			c.add(fmt.Sprintf("spec.authorities[%d].name", n), show(a.name)+" is there twice", "give each a name of its own")
		}
		seen[a.name] = true
		p.authorities = append(p.authorities, a)
	}
}

// images compiles the globs. Where one cannot be read, or there is none, it is
// not known what the policy names, and it is taken to name everything.
func (c *compiler) images(p *Policy, images []rawImage) {
	if len(images) == 0 || len(images) > maxGlobs {
		c.add("spec.images", fmt.Sprintf("there are %d, and 1 to %d are wanted", len(images), maxGlobs), `write - glob: "REGISTRY/PATH/**"`)
		p.globs = []glob{everything}
		return
	}
	for n, image := range images {
		path := fmt.Sprintf("spec.images[%d].glob", n)
		g, err := compileGlob(image.Glob)
		if err != nil {
			c.add(path, err.Error(), "correct the glob; until then the policy denies every image")
			p.globs = []glob{everything}
			return
		}
		for _, d := range doubts(image.Glob) {
			c.warn(path, show(image.Glob)+": "+d.text, d.mend)
		}
		p.globs = append(p.globs, g)
	}
}

func (c *compiler) authority(n int, raw *rawAuthority) *Authority {
	path := fmt.Sprintf("spec.authorities[%d]", n)
	a := &Authority{name: raw.Name}
	if a.name == "" {
		a.name = "authority-" + strconv.Itoa(n)
	}
	if !authorityName.MatchString(a.name) {
		c.add(path+".name", show(a.name)+" is no name", "write letters, digits, dots, dashes and blanks")
	}
	kinds := 0
	for _, there := range []bool{raw.Key != nil, given(raw.Keyless), raw.Static != nil} {
		if there {
			kinds++
		}
	}
	if kinds != 1 {
		c.add(path, fmt.Sprintf("it has %d of key, keyless and static", kinds), "write exactly one of them")
	}
	c.unknownYet(path+".keyless", raw.Keyless)
	c.unknownYet(path+".source", raw.Source)
	c.unknownYet(path+".ctlog", raw.CTLog)
	c.unknownYet(path+".attestations", raw.Attestations)
	c.unknownYet(path+".rfc3161timestamp", raw.RFC3161Timestamp)
	switch raw.SignatureFormat {
	case "":
	case string(evidence.FormatBundle), string(evidence.FormatLegacy):
		a.format = evidence.Format(raw.SignatureFormat)
	default:
		c.add(path+".signatureFormat", show(raw.SignatureFormat)+" is not known", "write legacy or bundle, or leave it out for both")
	}
	if raw.Key != nil {
		a.key = c.key(path+".key", raw.Key)
	}
	if raw.Static != nil {
		c.static(path+".static", a, raw.Static)
	}
	return a
}

func (c *compiler) static(path string, a *Authority, raw *rawStatic) {
	switch raw.Action {
	case "pass":
		a.static = StaticPass
	case "fail":
		a.static = StaticFail
	default:
		c.add(path+".action", show(raw.Action)+" is not known", "write pass or fail")
	}
	if len(raw.Message) > maxMessage {
		c.add(path+".message", fmt.Sprintf("it has %d bytes, at most %d are allowed", len(raw.Message), maxMessage), "shorten it")
		return
	}
	a.message = attest.Escape(raw.Message)
}

func (c *compiler) key(path string, raw *rawKey) *sigstore.Key {
	c.unknownYet(path+".secretRef", raw.SecretRef)
	if raw.KMS != "" {
		c.add(path+".kms", "keys are not asked of a key manager here", "write the public key itself in data")
	}
	if raw.Data == "" {
		if raw.KMS == "" && !given(raw.SecretRef) {
			c.add(path+".data", "it is missing", "write the public key in PEM")
		}
		return nil
	}
	// Upstream reads the first PEM block and drops the rest without a word;
	// ParseKey refuses a second.
	key, err := sigstore.ParseKey([]byte(raw.Data), strings.ToLower(strings.TrimSpace(raw.HashAlgorithm)))
	if err != nil {
		c.add(path, err.Error(), "write an ECDSA, RSA or Ed25519 public key in PEM, and sha224, sha256, sha384 or sha512")
		return nil
	}
	return key
}

// show quotes text of a file, cut and escaped.
func show(s string) string { return `"` + attest.Escape(s) + `"` }

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
