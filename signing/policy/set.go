package policy

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
	"sigs.k8s.io/yaml"
)

// Bounds of what is read as policies.
const (
	MaxFiles    = 256
	MaxFile     = 1 << 20 // bytes of one
	MaxAll      = 8 << 20 // bytes together
	MaxPolicies = 512
	maxDepth    = 32 // of nesting in a document
)

// File is one file of policies: YAML of any number of documents.
type File struct {
	Name string
	Data []byte
	// Err says why the file could not be read: its policies are not known, and
	// are taken to name everything.
	Err error
}

// Set is all policies that are in force. It is immutable; its zero value has no
// policy.
type Set struct {
	policies []*Policy // by name
	problems []Problem
	hash     Hash
}

// Compile makes a set of files. It never fails: what is wrong is in
// [Set.Problems], and a policy that cannot be used stands in the set as
// unusable.
func Compile(files []File) *Set {
	s := &Set{}
	if len(files) > MaxFiles {
		s.refuse("policies", fmt.Sprintf("there are %d files, at most %d are read", len(files), MaxFiles), "write several policies in one file")
		return s.finish()
	}
	files = slices.SortedFunc(slices.Values(files), func(a, b File) int { return cmp.Compare(a.Name, b.Name) })
	for _, f := range files {
		s.read(f)
		if len(s.policies) > MaxPolicies {
			s.policies = nil
			s.refuse("policies", fmt.Sprintf("there are more than %d policies", MaxPolicies), "let one policy name several globs")
			break
		}
	}
	return s.finish()
}

// refuse adds a policy that names everything and cannot be used.
func (s *Set) refuse(file, text, mend string) {
	problem := Problem{File: file, Text: text, Mend: mend + "; until then every image is denied"}
	s.problems = append(s.problems, problem)
	s.policies = append(s.policies, broken(file, file, []Problem{problem}, nil))
}

func (s *Set) finish() *Set {
	first := map[string]*Policy{}
	for n, p := range s.policies {
		other := first[p.name]
		if other == nil {
			first[p.name] = p
			continue
		}
		// Records could not tell them apart.
		problem := Problem{
			File: p.file, Policy: p.name, Path: "metadata.name",
			Text: "another policy has the name, in " + other.file, Mend: "give each policy a name of its own",
		}
		s.problems = append(s.problems, problem)
		twin := *p
		s.policies[n] = seal(&twin, []Problem{problem}, p.hash[:])
	}
	slices.SortStableFunc(s.policies, func(a, b *Policy) int { return cmp.Compare(a.name, b.name) })
	s.hash = HashOf(s.policies)
	return s
}

func (s *Set) read(f File) {
	if f.Err != nil {
		s.refuse(f.Name, "the file cannot be read: "+f.Err.Error(), "mend the file or its permissions")
		return
	}
	if len(f.Data) > MaxFile {
		s.refuse(f.Name, "the file is larger than 1 MiB", "split it")
		return
	}
	documents, err := split(f.Data)
	if err != nil {
		s.refuse(f.Name, "the file is no YAML: "+show(err.Error()), "correct the YAML")
		return
	}
	for n, d := range documents {
		p, problems := compile(f.Name, n+1, d)
		s.problems = append(s.problems, problems...)
		if p != nil {
			s.policies = append(s.policies, p)
		}
		if len(s.policies) > MaxPolicies {
			return
		}
	}
}

// split reads YAML of several documents strictly and returns each as JSON.
// Documents without content are left out.
func split(data []byte) ([][]byte, error) {
	var documents [][]byte
	decoder := yamlv3.NewDecoder(bytes.NewReader(data))
	for {
		var node yamlv3.Node
		err := decoder.Decode(&node)
		if errors.Is(err, io.EOF) {
			return documents, nil
		}
		if err != nil {
			return nil, clean(err)
		}
		if len(documents) > MaxPolicies {
			return nil, fmt.Errorf("more than %d documents", MaxPolicies)
		}
		if empty(&node) {
			continue
		}
		if err := plain(&node, 0); err != nil {
			return nil, err
		}
		text, err := yamlv3.Marshal(&node)
		if err != nil {
			return nil, clean(err)
		}
		document, err := yaml.YAMLToJSONStrict(text)
		if err != nil {
			return nil, clean(err)
		}
		documents = append(documents, document)
	}
}

func clean(err error) error {
	return errors.New(strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\n", " "), "yaml: "))
}

func empty(node *yamlv3.Node) bool {
	return node.Kind == 0 || len(node.Content) == 1 && node.Content[0].Kind == yamlv3.ScalarNode && node.Content[0].Tag == "!!null"
}

// plain refuses what makes a small file large, or deep, when it is read.
func plain(node *yamlv3.Node, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("line %d: nested deeper than %d", node.Line, maxDepth)
	}
	if node.Kind == yamlv3.AliasNode {
		return fmt.Errorf("line %d: an alias: write the value itself", node.Line)
	}
	for _, child := range node.Content {
		if err := plain(child, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// Problems returns all that is wrong or odd, in the order of the files.
func (s *Set) Problems() []Problem { return slices.Clone(s.problems) }

// Policies returns all policies, by name.
func (s *Set) Policies() []*Policy { return slices.Clone(s.policies) }

// Hash names the content of the whole set.
func (s *Set) Hash() Hash { return s.hash }

// Match returns the policies that speak about image in a pod of these facts.
func (s *Set) Match(image Image, facts Facts) []*Policy {
	policies, _ := s.Naming(image).For(facts)
	return policies
}

// Naming returns the policies that name image, whatever the pod. It is the part
// of [Set.Match] that costs time and can be kept.
func (s *Set) Naming(image Image) *Naming {
	n := &Naming{}
	for _, p := range s.policies {
		if p.names(image) {
			n.policies = append(n.policies, p)
			n.selective = n.selective || len(p.match) > 0
		}
	}
	n.hash = HashOf(n.policies)
	return n
}

// Naming is the policies that name one image, whatever the pod. It is
// immutable.
type Naming struct {
	policies  []*Policy
	selective bool // some look at the pod
	hash      Hash
}

// For returns those of the policies that cover a pod of these facts, and the
// hash of them together. The slice MUST NOT be changed.
func (n *Naming) For(facts Facts) ([]*Policy, Hash) {
	if !n.selective {
		return n.policies, n.hash
	}
	var covering []*Policy
	for _, p := range n.policies {
		if p.covers(facts) {
			covering = append(covering, p)
		}
	}
	return covering, HashOf(covering)
}

// HashOf names the content of several policies in their order.
func HashOf(policies []*Policy) Hash {
	h := sha256.New()
	for _, p := range policies {
		h.Write(p.hash[:])
	}
	var sum Hash
	h.Sum(sum[:0])
	return sum
}

// Hash names the policies that name the image.
func (n *Naming) Hash() Hash { return n.hash }

// Selective tells whether some of the policies look at the pod.
func (n *Naming) Selective() bool { return n.selective }
