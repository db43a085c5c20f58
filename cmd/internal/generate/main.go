package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

func main() {
	if err := run("."); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

// run rewrites every generated file below root that differs.
func run(root string) error {
	files, err := render(root)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join(root, name)
		if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, files[name]) {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, files[name], 0o644); err != nil {
			return err
		}
		fmt.Println("wrote", name)
	}
	stale, err := staleCommands(root, files)
	if err != nil {
		return err
	}
	for _, name := range stale {
		if err := os.Remove(filepath.Join(root, name)); err != nil {
			return err
		}
		fmt.Println("removed", name)
	}
	return nil
}

// render returns every generated file by its path below root.
func render(root string) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, part := range []func(string, map[string][]byte) error{addComments, addReasons, addSettings, addCommands, addModules} {
		if err := part(root, files); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// staleCommands returns the pages of commands that are gone.
func staleCommands(root string, files map[string][]byte) ([]string, error) {
	pages, err := fs.Glob(os.DirFS(root), commandDocs+"/*.md")
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(pages, func(name string) bool { return files[name] != nil }), nil
}
