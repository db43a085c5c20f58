package house_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const (
	root   = "../../.."
	module = "github.com/hallmark-ca/hallmark"
)

// source is one Go file of the repository, of either module.
type source struct {
	name    string // slash-separated, below the root
	pkg     string // its folder
	test    bool
	lines   int
	imports []string
	text    string
	file    *ast.File
	fset    *token.FileSet
}

var sources = sync.OnceValues(func() ([]source, error) {
	var out []source
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); p != root && (strings.HasPrefix(name, ".") && name != "." && name != ".." || name == "testdata" || name == "bin" || name == "dist") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		s, err := read(p)
		out = append(out, s)
		return err
	})
	return out, err
})

func read(p string) (source, error) {
	text, err := os.ReadFile(p)
	if err != nil {
		return source{}, err
	}
	rel, err := filepath.Rel(root, p)
	if err != nil {
		return source{}, err
	}
	s := source{name: filepath.ToSlash(rel), text: string(text), lines: strings.Count(string(text), "\n"), fset: token.NewFileSet()}
	s.pkg, s.test = path.Dir(s.name), strings.HasSuffix(s.name, "_test.go")
	if s.file, err = parser.ParseFile(s.fset, p, text, parser.ParseComments); err != nil {
		return source{}, err
	}
	for _, i := range s.file.Imports {
		name, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			return source{}, err
		}
		s.imports = append(s.imports, name)
	}
	return s, nil
}

func all(t *testing.T) []source {
	t.Helper()
	found, err := sources()
	if err != nil {
		t.Fatal(err)
	}
	if len(found) < 50 {
		t.Fatalf("only %d Go files were found: the test looks in the wrong place", len(found))
	}
	return found
}

// within tells whether pkg is below one of the folders.
func within(pkg string, folders ...string) bool {
	for _, f := range folders {
		if pkg == f || strings.HasPrefix(pkg, f+"/") {
			return true
		}
	}
	return false
}
