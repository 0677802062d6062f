package reload

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/config"
)

// directory is files whose lines are words: each may be in one file alone, and "bad" in none.
type directory struct {
	path     string
	missing  bool // something that the files need is not there
	full     error
	recorded []string
	applied  []string
	told     []error
}

func newDirectory(t *testing.T, files ...string) *directory {
	d := &directory{path: t.TempDir()}
	for i := 0; i < len(files); i += 2 {
		d.write(t, files[i], files[i+1])
	}
	return d
}

func (d *directory) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(d.path, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (d *directory) remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(d.path, name)); err != nil {
		t.Fatal(err)
	}
}

func (d *directory) parse(files []config.File) (string, error) {
	if d.missing {
		return "", config.Errors{{Pos: config.Pos{File: files[0].Path, Line: 1}, Msg: "something is missing"}}
	}
	var problems config.Errors
	first := make(map[string]config.Pos)
	var all []string
	for _, f := range files {
		for i, word := range strings.Fields(string(f.Data)) {
			at := config.Pos{File: f.Path, Line: i + 1}
			if word == "bad" {
				problems.Add(at, "is bad")
			}
			if other, again := first[word]; again {
				problems.AddBetween(at, other, "%s is at %v too", word, other)
			}
			first[word] = at
			all = append(all, word)
		}
	}
	return strings.Join(all, " "), problems.Err()
}

func (d *directory) value() *Value[string] {
	return New(Source[string]{
		Name: "words", Place: d.path, Parse: d.parse,
		Digest: func(s string) [32]byte { return sha256.Sum256([]byte(s)) },
		Record: func(_ context.Context, next string, problem error) error {
			if d.full != nil {
				return d.full
			}
			if problem != nil {
				next = "refused"
			}
			d.recorded = append(d.recorded, next)
			return nil
		},
		Apply:  func(s string) { d.applied = append(d.applied, s) },
		Tell:   func(problem error) { d.told = append(d.told, problem) },
		Logger: slog.New(slog.DiscardHandler),
	})
}

// holds checks what is in force, and which files are not: "-b.yaml" if nothing of it is.
func holds(t *testing.T, v *Value[string], want string, held ...string) {
	t.Helper()
	s := v.State()
	var got []string
	if h, ok := errors.AsType[HeldBack](s.Problem); ok {
		for _, f := range h {
			name := filepath.Base(f.Path)
			if !f.Former {
				name = "-" + name
			}
			got = append(got, name)
			if len(f.Why) == 0 || !strings.Contains(s.Problem.Error(), f.Path) {
				t.Errorf("%s is held back and %q does not say why", name, s.Problem)
			}
		}
	}
	if s.Value != want || !slices.Equal(got, held) || (s.Problem != nil) != (len(held) > 0) {
		t.Errorf("in force %q, held back %q (%v), want %q and %q", s.Value, got, s.Problem, want, held)
	}
}

func TestBadFileHoldsBackItselfAlone(t *testing.T) {
	t.Parallel()
	d := newDirectory(t, "a.yaml", "one", "b.yaml", "two", "c.yaml", "three")
	v := d.value()
	look(t, v, true)
	d.write(t, "a.yaml", "four")
	d.write(t, "b.yaml", "five bad")
	d.remove(t, "c.yaml")
	look(t, v, true)
	holds(t, v, "four two", "b.yaml")
	look(t, v, false)
	d.write(t, "a.yaml", "six")
	look(t, v, true)
	holds(t, v, "six two", "b.yaml")
	d.write(t, "b.yaml", "five")
	look(t, v, true)
	holds(t, v, "six five")
	check(t, "recorded", d.recorded, []string{"one two three", "four two", "refused", "six two", "six five"})
	check(t, "applied", d.applied, []string{"one two three", "four two", "six two", "six five"})
	if len(d.told) != 2 || d.told[0] == nil || d.told[1] != nil {
		t.Errorf("told %v, want the problem, and that it is over", d.told)
	}
}

func TestBadFileAtTheStartIsLeftOut(t *testing.T) {
	t.Parallel()
	d := newDirectory(t, "a.yaml", "one", "b.yaml", "bad", "c.yml", "three")
	v := d.value()
	look(t, v, true)
	holds(t, v, "one", "-b.yaml", "-c.yml")
	if h, _ := errors.AsType[HeldBack](v.State().Problem); !h.Lost() {
		t.Error("it does not say that a file is lost")
	}
	d.remove(t, "c.yml")
	look(t, v, true)
	holds(t, v, "one", "-b.yaml")
	d.remove(t, "b.yaml") // what is in force stays the same
	look(t, v, true)
	holds(t, v, "one")
}

func TestOfFilesThatContradictEachOtherTheNewOneIsHeldBack(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a.yaml", "c.yaml"} { // wherever it stands
		d := newDirectory(t, "b.yaml", "one", "d.yaml", "two")
		v := d.value()
		look(t, v, true)
		d.write(t, name, "one three")
		d.write(t, "d.yaml", "four")
		look(t, v, true)
		holds(t, v, "one four", "-"+name)
		d.remove(t, "b.yaml")
		look(t, v, true)
		if s := v.State(); s.Problem != nil || !strings.Contains(s.Value, "one three") {
			t.Errorf("%q, %v, want it in force once nothing contradicts it", s.Value, s.Problem)
		}
	}
}

func TestNewFilesThatContradictEachOtherHoldBackEachOther(t *testing.T) {
	t.Parallel()
	d := newDirectory(t, "a.yaml", "one", "b.yaml", "one", "c.yaml", "two")
	v := d.value()
	look(t, v, true)
	holds(t, v, "two", "-a.yaml", "-b.yaml")
}

func TestWhatContradictsAFormerVersionIsHeldBack(t *testing.T) {
	t.Parallel()
	d := newDirectory(t, "a.yaml", "one", "b.yaml", "two")
	v := d.value()
	look(t, v, true)
	d.write(t, "a.yaml", "bad") // which was to give up "one"
	d.write(t, "b.yaml", "one")
	look(t, v, true)
	holds(t, v, "one two", "a.yaml", "b.yaml")
}

func TestFileThatOthersMayWriteToIsNotRead(t *testing.T) {
	t.Parallel()
	d := newDirectory(t, "a.yaml", "one", "b.yaml", "two")
	v := d.value()
	look(t, v, true)
	d.write(t, "b.yaml", "three")
	if err := os.Chmod(filepath.Join(d.path, "b.yaml"), 0o666); err != nil {
		t.Fatal(err)
	}
	look(t, v, true)
	holds(t, v, "one two", "b.yaml")
}

func TestProblemOfFilesThatHaveNotChangedLeavesAllAsItIs(t *testing.T) {
	t.Parallel()
	d := newDirectory(t, "a.yaml", "one", "b.yaml", "two")
	v := d.value()
	look(t, v, true)
	d.missing = true
	d.write(t, "b.yaml", "three")
	look(t, v, true)
	if s := v.State(); s.Value != "one two" || s.Problem == nil || errors.As(s.Problem, new(HeldBack)) {
		t.Errorf("in force %q, %v", s.Value, s.Problem)
	}
	look(t, v, false)
	d.missing = false
	look(t, v, true)
	holds(t, v, "one three")
}

func TestFilesThatCannotBeRecordedAreNotInForce(t *testing.T) {
	t.Parallel()
	d := newDirectory(t, "a.yaml", "one", "b.yaml", "two")
	v := d.value()
	look(t, v, true)
	d.full = errors.New("no space")
	d.write(t, "a.yaml", "three")
	d.write(t, "b.yaml", "bad")
	if _, err := v.Reload(t.Context()); err == nil {
		t.Error("it says that all is well")
	}
	if s := v.State(); s.Value != "one two" {
		t.Errorf("in force %q", s.Value)
	}
	d.full = nil
	look(t, v, true)
	holds(t, v, "three two", "b.yaml")
}

func TestManyFilesInChainsOfContradictionsCostBoundedWork(t *testing.T) {
	t.Parallel()
	d := newDirectory(t)
	for i := range 100 {
		d.write(t, fmt.Sprintf("%03d.yaml", i), fmt.Sprintf("w%d w%d", i, i+1))
	}
	parsed := 0
	if _, _, held, err := parseFiles(d.path, nil, func(files []config.File) (string, error) {
		parsed++
		return d.parse(files)
	}); err != nil || len(held) != 100 || parsed > maxRounds {
		t.Errorf("held back %d files after parsing %d times, %v", len(held), parsed, err)
	}
}
