package config

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"sigs.k8s.io/yaml"
)

// comments holds the doc comment of each setting by its path, generated from
// the fields of [File].
//
//go:embed comments.json
var comments []byte

// Setting is one setting, for documents.
type Setting struct {
	Path    string
	Group   bool   // it holds other settings
	Kind    string // text, boolean, list or mapping
	Default string // in YAML
	Doc     string
}

// Settings returns every setting in the order of the file, with the values of f
// for defaults and the comments of a JSON object of comments by path.
func Settings(f File, comments []byte) ([]Setting, error) {
	docs := map[string]string{}
	if err := json.Unmarshal(comments, &docs); err != nil {
		return nil, fmt.Errorf("reading comments of the settings: %w", err)
	}
	var out []Setting
	err := walk("", reflect.ValueOf(f), func(path string, value reflect.Value) error {
		s := Setting{Path: path, Group: value.Kind() == reflect.Struct, Doc: docs[path]}
		if s.Doc == "" {
			return fmt.Errorf("setting %s has no comment", path)
		}
		if !s.Group {
			text, err := yaml.Marshal(value.Interface())
			if err != nil {
				return fmt.Errorf("writing setting %s: %w", path, err)
			}
			s.Default = strings.TrimSuffix(string(text), "\n")
			s.Kind = map[reflect.Kind]string{reflect.String: "text", reflect.Bool: "boolean", reflect.Slice: "list", reflect.Map: "mapping"}[value.Kind()]
		}
		out = append(out, s)
		return nil
	})
	return out, err
}

// walk visits the settings below v, groups before what they hold.
func walk(path string, v reflect.Value, visit func(string, reflect.Value) error) error {
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		at := join(path, name)
		if err := visit(at, v.Field(i)); err != nil {
			return err
		}
		if v.Field(i).Kind() == reflect.Struct {
			if err := walk(at, v.Field(i), visit); err != nil {
				return err
			}
		}
	}
	return nil
}

// Render writes f as a file for people: every setting with its comment.
// Settings named unsafe are left out unless they are set.
func Render(f File) ([]byte, error) {
	settings, err := Settings(f, comments)
	if err != nil {
		return nil, fmt.Errorf("writing configuration: %w", err)
	}
	var b bytes.Buffer
	b.WriteString("# Configuration of Hallmark. Every setting is here, with its value; a line that is\n# taken out means the default. A change needs a restart, unless the comment says\n# otherwise; hallmark serve --check tells beforehand what is wrong.\n")
	for _, s := range settings {
		depth := strings.Count(s.Path, ".")
		name := s.Path[strings.LastIndex(s.Path, ".")+1:]
		if strings.HasPrefix(name, "unsafe") && s.Default == "false" {
			continue
		}
		indent := strings.Repeat("  ", depth)
		if s.Group || depth == 0 {
			b.WriteString("\n")
		}
		for line := range strings.SplitSeq(s.Doc, "\n") {
			fmt.Fprintf(&b, "%s# %s\n", indent, line)
		}
		switch {
		case s.Group:
			fmt.Fprintf(&b, "%s%s:\n", indent, name)
		case (s.Kind == "list" || s.Kind == "mapping") && s.Default != "[]" && s.Default != "{}":
			fmt.Fprintf(&b, "%s%s:\n%s  %s\n", indent, name, indent, strings.ReplaceAll(s.Default, "\n", "\n"+indent+"  "))
		default:
			fmt.Fprintf(&b, "%s%s: %s\n", indent, name, s.Default)
		}
	}
	return b.Bytes(), nil
}
