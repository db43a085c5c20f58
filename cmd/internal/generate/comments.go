package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
)

const configDir = "cmd/internal/config"

// addComments collects the doc comments of the configuration's fields.
func addComments(root string, files map[string][]byte) error {
	structs, err := parseStructs(filepath.Join(root, configDir))
	if err != nil {
		return fmt.Errorf("reading comments of the configuration: %w", err)
	}
	docs := map[string]string{}
	if err := collect("", "File", structs, docs); err != nil {
		return fmt.Errorf("reading comments of the configuration: %w", err)
	}
	text, err := json.MarshalIndent(docs, "", "  ") // sorted by key
	if err != nil {
		return err
	}
	files[commentsFile] = append(text, '\n')
	return nil
}

func parseStructs(dir string) (map[string]*ast.StructType, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	structs := map[string]*ast.StructType{}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok {
				if s, ok := spec.Type.(*ast.StructType); ok {
					structs[spec.Name.Name] = s
				}
			}
			return true
		})
	}
	return structs, nil
}

func collect(path, name string, structs map[string]*ast.StructType, docs map[string]string) error {
	s := structs[name]
	if s == nil {
		return fmt.Errorf("no struct %s", name)
	}
	for _, field := range s.Fields.List {
		if field.Tag == nil {
			return fmt.Errorf("%s: a field has no json tag", name)
		}
		tag, err := strconv.Unquote(field.Tag.Value)
		if err != nil {
			return err
		}
		key, _, _ := strings.Cut(reflect.StructTag(tag).Get("json"), ",")
		at := strings.TrimPrefix(path+"."+key, ".")
		doc := strings.TrimSpace(field.Doc.Text())
		if doc == "" {
			return errors.New(at + " has no comment")
		}
		docs[at] = doc
		if inner, ok := field.Type.(*ast.Ident); ok && structs[inner.Name] != nil {
			if err := collect(at, inner.Name, structs, docs); err != nil {
				return err
			}
		}
	}
	return nil
}
