package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

const (
	// maxFile bounds the configuration file, in bytes.
	maxFile = 1 << 20
	// maxProblems bounds how often the file is read again without the values
	// that were of the wrong kind.
	maxProblems = 100
)

// Load reads the file at path. What is wrong with its content is returned as
// [Problems], all of it at once.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading configuration: %w: run hallmark init first, or name the right --state or --config", err)
	}
	if err != nil {
		return nil, fmt.Errorf("reading configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading configuration: %w", err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("reading configuration: %s is larger than 1 MiB", path)
	}
	cfg, err := Parse(data)
	if err == nil && same(cfg.Bundle.File, path) {
		return nil, Problems{{bundlePath, fmt.Sprintf("%s is this configuration, and would be overwritten", cfg.Bundle.File), bundleMend}}
	}
	return cfg, err
}

// Parse reads a configuration. What is wrong with it is returned as
// [Problems].
func Parse(data []byte) (*Config, error) {
	c := &checker{}
	file, ok := c.decode(data)
	if !ok {
		return nil, c.problems
	}
	cfg := c.check(file)
	if len(c.problems) > 0 {
		return nil, c.problems
	}
	return cfg, nil
}

// decode is the first stage: strict YAML into a [File] that holds the defaults
// where the text is silent. It reports false if the text is no YAML at all.
func (c *checker) decode(data []byte) (File, bool) {
	file := Defaults()
	var doc yamlv3.Node
	if err := yamlv3.Unmarshal(data, &doc); err != nil {
		c.add("", strings.TrimPrefix(err.Error(), "yaml: "), "correct the YAML")
		return file, false
	}
	if doc.Kind == 0 {
		return file, true // an empty file means the defaults
	}
	c.ambiguous("", doc.Content[0], 0)
	text, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		c.add("", strings.ReplaceAll(strings.TrimPrefix(err.Error(), "yaml: "), "\n", " "), "correct the YAML")
		return file, false
	}
	var tree any
	if err := json.Unmarshal(text, &tree); err != nil {
		c.add("", err.Error(), "correct the YAML")
		return file, false
	}
	if _, ok := tree.(map[string]any); !ok {
		c.add("", "the file is no mapping", "write KEY: VALUE lines")
		return file, false
	}
	c.fill(&file, tree.(map[string]any))
	return file, true
}

// fill decodes tree into file. The decoder stops counting at the first value of
// a wrong kind: it is reported, taken out, and the rest read again.
func (c *checker) fill(file *File, tree map[string]any) {
	for range maxProblems {
		*file = Defaults()
		text, err := json.Marshal(tree)
		if err != nil {
			c.add("", err.Error(), "correct the YAML")
			return
		}
		strict, err := kjson.UnmarshalStrict(text, file)
		if wrong := (*json.UnmarshalTypeError)(nil); errors.As(err, &wrong) && remove(tree, strings.Split(wrong.Field, ".")) {
			c.add(wrong.Field, fmt.Sprintf("it is a %s", wrong.Value), "write "+kindName(wrong.Type.Kind().String())+wantQuotes(wrong))
			continue
		}
		if err != nil {
			c.add("", err.Error(), "correct the value")
			return
		}
		for _, unknown := range strict {
			c.add(unknownPath(unknown.Error()), "the key is not known", "correct its spelling (case counts); the file that hallmark init writes has every key")
		}
		return
	}
}

func kindName(kind string) string {
	switch kind {
	case "string":
		return "a text"
	case "bool":
		return "true or false"
	case "slice":
		return "a list"
	case "struct", "map":
		return "a mapping"
	}
	return "a number"
}

func wantQuotes(e *json.UnmarshalTypeError) string {
	if e.Type.Kind().String() == "string" && e.Value == "number" {
		return ": durations and sizes have a unit (10m, 8GiB), other numbers need quotes"
	}
	return ""
}

// remove takes the value at path out of tree.
func remove(tree map[string]any, path []string) bool {
	for i, key := range path {
		value, ok := tree[key]
		if !ok {
			return false
		}
		next, isMap := value.(map[string]any)
		if i == len(path)-1 || !isMap {
			delete(tree, key)
			return true
		}
		tree = next
	}
	return false
}

var quoted = regexp.MustCompile(`unknown field "([^"]*)"`)

func unknownPath(text string) string {
	if m := quoted.FindStringSubmatch(text); m != nil {
		return m[1]
	}
	return text
}

// booleans are the words that YAML 1.1 reads as true or false.
var booleans = regexp.MustCompile(`^(?i:y|n|yes|no|on|off)$`)

// ambiguous refuses the words that one YAML reader takes for text and the other
// for a boolean, wherever they stand without quotes.
func (c *checker) ambiguous(path string, node *yamlv3.Node, depth int) {
	if depth > 32 {
		c.add(path, "nested too deep", "correct the YAML")
		return
	}
	switch node.Kind {
	case yamlv3.ScalarNode:
		if node.Style == 0 && booleans.MatchString(node.Value) {
			c.add(path, fmt.Sprintf("%s in line %d may be read as a boolean", node.Value, node.Line), "write the word that the setting knows; a text goes in quotes")
		}
	case yamlv3.MappingNode:
		for i := 0; i+1 < len(node.Content); i += 2 {
			key := join(path, node.Content[i].Value)
			c.ambiguous(key, node.Content[i], depth+1)
			c.ambiguous(key, node.Content[i+1], depth+1)
		}
	case yamlv3.SequenceNode:
		for i, item := range node.Content {
			c.ambiguous(at(path, i), item, depth+1)
		}
	case yamlv3.AliasNode:
		c.add(path, fmt.Sprintf("line %d uses an alias", node.Line), "write the value itself")
	}
}
