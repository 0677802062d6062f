package vouchd

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What a newcomer can hold in mind.
const (
	maxMethods = 15   // of a type in cmd/
	maxFiles   = 20   // of a package, outside tests
	maxLines   = 3500 // the same
)

func TestNoTypeOfACommandHasMoreMethodsThanTheRule(t *testing.T) {
	methods := make(map[string]int)
	walkSources(t, "cmd", func(path string, source []byte) {
		file, err := parser.ParseFile(token.NewFileSet(), path, source, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv != nil {
				methods[filepath.Dir(path)+"."+receiver(f.Recv.List[0].Type)]++
			}
		}
	})
	for name, n := range methods {
		if n > maxMethods {
			t.Errorf("%s has %d methods, more than %d; part it by what they do", name, n, maxMethods)
		}
	}
}

// receiver returns the name of a method's type.
func receiver(of ast.Expr) string {
	switch of := of.(type) {
	case *ast.StarExpr:
		return receiver(of.X)
	case *ast.IndexExpr:
		return receiver(of.X)
	case *ast.IndexListExpr:
		return receiver(of.X)
	case *ast.Ident:
		return of.Name
	}
	return "?"
}

func TestNoPackageIsLargerThanTheRule(t *testing.T) {
	type size struct{ files, lines int }
	sizes := make(map[string]size)
	walkSources(t, ".", func(path string, source []byte) {
		s := sizes[filepath.Dir(path)]
		sizes[filepath.Dir(path)] = size{s.files + 1, s.lines + bytes.Count(source, []byte("\n"))}
	})
	for _, name := range slices.Sorted(maps.Keys(sizes)) {
		if s := sizes[name]; s.files > maxFiles || s.lines > maxLines {
			t.Errorf("%s has %d files and %d lines outside tests, more than %d and %d; split it", name, s.files, s.lines, maxFiles, maxLines)
		}
	}
}

// walkSources calls seen with each Go file below dir that is neither a test nor
// generated.
func walkSources(t *testing.T, dir string, seen func(path string, source []byte)) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != "." && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "testdata" || path == "packaging/tools"):
			return filepath.SkipDir
		case entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil || ast.IsGenerated(parseHeader(t, path, source)) {
			return err
		}
		n++
		seen(path, source)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n == 0 {
		t.Fatalf("there is no Go file below %s", dir)
	}
}

func parseHeader(t *testing.T, path string, source []byte) *ast.File {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, source, parser.PackageClauseOnly|parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return file
}
