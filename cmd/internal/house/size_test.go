package house_test

import (
	"go/ast"
	"go/token"
	"strings"
	"testing"
)

// Limits, as a smell and not as a law: exceptions stand with a reason each.
const (
	maxLines     = 450
	maxTestLines = 800
	maxFunction  = 70
	maxNames     = 25
)

func TestFileSize(t *testing.T) {
	for _, s := range all(t) {
		limit := maxLines
		if s.test {
			limit = maxTestLines
		}
		checkLimit(t, longFiles, s.name, s.lines, limit, "lines")
	}
}

func TestFunctionSize(t *testing.T) {
	for _, s := range all(t) {
		for _, d := range s.file.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil || s.test {
				continue // a table of test cases is long, and reads well
			}
			lines := s.fset.Position(fn.End()).Line - s.fset.Position(fn.Pos()).Line + 1
			checkLimit(t, longFunctions, s.pkg+"."+fn.Name.Name, lines, maxFunction, "lines")
		}
	}
}

func TestExportedNames(t *testing.T) {
	names := map[string]int{}
	for _, s := range all(t) {
		if s.test || s.file.Name.Name == "main" {
			continue
		}
		for _, d := range s.file.Decls {
			names[s.pkg] += exported(d)
		}
	}
	for pkg, n := range names {
		checkLimit(t, manyNames, pkg, n, maxNames, "exported names")
	}
}

// exported counts exported functions, types and variables at the top level,
// but not methods (they are their type's) and constants of a type (they are an
// enumeration).
func exported(d ast.Decl) int {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Recv == nil && d.Name.IsExported() {
			return 1
		}
	case *ast.GenDecl:
		if d.Tok == token.CONST && d.Lparen.IsValid() {
			return 0
		}
		n := 0
		for _, spec := range d.Specs {
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				if spec.Name.IsExported() {
					n++
				}
			case *ast.ValueSpec:
				for _, name := range spec.Names {
					if name.IsExported() {
						n++
					}
				}
			}
		}
		return n
	}
	return 0
}

func checkLimit(t *testing.T, exceptions map[string]exception, name string, got, limit int, unit string) {
	t.Helper()
	e, listed := exceptions[name]
	switch {
	case listed && got <= limit:
		t.Errorf("%s has %d %s: take it out of the exceptions", name, got, unit)
	case listed && got > e.limit:
		t.Errorf("%s has %d %s, and its exception is for %d", name, got, unit, e.limit)
	case !listed && got > limit:
		t.Errorf("%s has %d %s, more than %d", name, got, unit, limit)
	}
}

// TestMains keeps every main a few lines: what they do lies where it is tested.
func TestMains(t *testing.T) {
	for _, s := range all(t) {
		if strings.HasPrefix(s.name, "cmd/hallmark") && !s.test && s.lines > 15 {
			t.Errorf("%s has %d lines, more than 15", s.name, s.lines)
		}
	}
}
