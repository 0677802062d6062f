package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

type sample struct {
	Name  string        `yaml:"name"`
	Wait  time.Duration `yaml:"wait" default:"5m" min:"1m" max:"1h"`
	On    bool          `yaml:"on"`
	Words []string      `yaml:"words"`
	Inner struct {
		Key At[string] `yaml:"key"`
		Pos Pos
	} `yaml:"inner"`
	Items []struct {
		Key string `yaml:"key"`
		Pos Pos
	} `yaml:"items"`
}

func TestDecodeTellsWhereThingsStand(t *testing.T) {
	t.Parallel()
	var got sample
	err := Decode("f.yaml", []byte("on: true\nname: \"1\"\ninner:\n  key: x\nitems:\n- key: a\n-\n  key: b\nwords:\n"), &got)
	if err != nil {
		t.Fatal(err)
	}
	if !got.On || got.Name != "1" || got.Wait != 5*time.Minute || got.Words != nil {
		t.Errorf("got %+v", got)
	}
	for what, pos := range map[string]Pos{
		"f.yaml:4": got.Inner.Pos, // where its first key stands
		"f.yaml:6": got.Items[0].Pos,
		"f.yaml:8": got.Items[1].Pos,
	} {
		if pos.String() != what {
			t.Errorf("position %v, want %s", pos, what)
		}
	}
	if want := (At[string]{"x", Pos{"f.yaml", 4, 8}}); got.Inner.Key != want {
		t.Errorf("value with its place %+v, want %+v", got.Inner.Key, want)
	}
}

func TestDecodeReportsABoundedNumberOfProblems(t *testing.T) {
	t.Parallel()
	err := Decode("f.yaml", []byte(strings.Repeat("- x\n", 100_000)), new(sample))
	if got := fmt.Sprint(err); strings.Count(got, "\n") > MaxErrors {
		t.Errorf("%d lines", strings.Count(got, "\n"))
	}
	var b strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&b, "k%d: x\n", i)
	}
	err = Decode("f.yaml", []byte(b.String()), new(sample))
	es, ok := errors.AsType[Errors](err)
	if !ok || len(es) < MaxErrors || strings.Count(err.Error(), "\n") != MaxErrors {
		t.Errorf("%d problems in %d lines, want %d lines and a count of the rest", len(es), 1+strings.Count(err.Error(), "\n"), MaxErrors)
	}
}

func TestDecodeBoundsSizeAndDepth(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, data, want string }{
		{"a large file", strings.Repeat("#", MaxFileLen+1), "f.yaml: the file has 1048577 bytes and may have 1048576; split it"},
		{"deep lists", "name: " + strings.Repeat("[", 20) + strings.Repeat("]", 20), "f.yaml:1: nested deeper than 12 levels; check the indentation"},
		{"a syntax error at the end of a megabyte", strings.Repeat("a: b\n", 200_000) + "}", "f.yaml:200000: malformed YAML: did not find expected key; check the indentation, quotes and brackets here"},
		{"very deep lists", strings.Repeat("[", 20_000), "f.yaml:1: malformed YAML: exceeded max depth of 10000; check the indentation, quotes and brackets here"},
		{"a line of a megabyte", "name: {b: " + strings.Repeat("a", 1<<19) + "}", `f.yaml:1: name must be text, and is keys with values`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := fmt.Sprint(Decode("f.yaml", []byte(tt.data), new(sample)))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestDecodeNamesTheLineOfASyntaxError(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, data string
		line       int
	}{
		{"in the first line", "}", 1},
		{"a key after a list", "- a\nb: c\n", 2},
		{"an odd indentation", "inner:\n  key: a\n\n   word: b\n", 4},
		{"a bracket that is never closed", "name: a\nwords: [a,\n", 2},
		{"a byte that is no UTF-8", "name: a\non: true\nwords: [\xff]\n", 3},
		{"a zero byte", "name: a\nname: \x00\n", 2},
		{"late in a long file", strings.Repeat("a: b\n", 5_000) + "}", 5_001},
		{"in a second document", "name: a\n---\nname: }\n", 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := Decode("f.yaml", []byte(tt.data), new(sample))
			es, ok := errors.AsType[Errors](err)
			if !ok || es[0].Line != tt.line || !strings.Contains(es[0].Msg, "malformed YAML") {
				t.Errorf("got %v, want malformed YAML in line %d", err, tt.line)
			}
		})
	}
}

// Whatever the bytes are, the answer is a value or problems of this file, in
// few lines, each with a way to mend it.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{"name: a\nwait: 1h\n", "items: [{key: a}, {key: b}]", "a: &x\nb: *x", "? [a]\n: b", "---\n---\n", "inner: {<<: {key: x}}", "words: [!!int 5]", "\ufeffname: x", "wait: 5\nwait: .inf"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		err := Decode("f.yaml", data, new(sample))
		if err == nil {
			return
		}
		es, ok := errors.AsType[Errors](err)
		if !ok || len(es) == 0 {
			t.Fatalf("error of type %T", err)
		}
		for i, e := range es {
			if e.File != "f.yaml" || e.Line < 0 || e.Msg == "" || i > 0 && e.Line < es[i-1].Line {
				t.Fatalf("problem %+v", e)
			}
		}
		if s := err.Error(); strings.Count(s, "\n") > MaxErrors || len(s) > (MaxErrors+1)*600 {
			t.Fatalf("a message of %d bytes in %d lines", len(s), strings.Count(s, "\n"))
		}
	})
}
