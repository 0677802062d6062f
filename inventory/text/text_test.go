package text

import (
	"fmt"
	"strings"
	"testing"
)

// show is what was read, with what stands in the file.
func show(data string, list []Entry) string {
	var b strings.Builder
	for _, e := range list {
		fmt.Fprintf(&b, "%s|%s|%s|%s\n", e.Section, e.Key, e.Value, data[e.Start:e.End])
	}
	return b.String()
}

func TestEntriesAreReadWithTheirPlaces(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		read func([]byte) []Entry
		in   string
		want string
	}{
		{"assignments", Assignments, "\xef\xbb\xbfA=b\r\n export C=\"d\\ne\" F='g h' # i\nset -gx J k\n#L=m\nnone\nN=\"open\nO=p;\n", "|A|b|b\n|C|d\ne|d\\ne\n|F|g h|g h\n|J|k|k\n|L|m|m\n|N|open\nO=p;|open\nO=p;\n"[:len("|A|b|b\n|C|d\ne|d\\ne\n|F|g h|g h\n|J|k|k\n|L|m|m\n")] + "|N|open|open\n|O|p|p\n"},
		{"INI", INI, "[a b]\nc = d e\n;x=y\n//h:1/:_t=v\n[\"q\"]\nr: 's'\n", "a b|c|d e|d e\na b|//h:1/:_t|v|v\n\"q\"|r|s|s\n"},
		{"units", Unit, "[Service]\n# A=\\\nB=c \\\n d\nE=\n", "Service|B|c \\\n d|c \\\n d\nService|E||\n"},
		{"TOML", TOML, "[a.\"b\"]\nc = \"d\"\ne = { f = 'g', \"H\" = \"i\" }\nn = 1\n", "a.b|c|d|d\na.b.e|f|g|g\na.b.e|H|i|i\n"},
		{"words", func(b []byte) []Entry { return Words(Entry{Value: b, End: len(b)}) }, `A=b "C=d e" F='g' H="i" 'x`, "|A|b|b\n|C|d e|d e\n|F|g|g\n|H|i|i\n"},
	} {
		if got := show(tt.in, tt.read([]byte(tt.in))); got != tt.want {
			t.Errorf("%s: read is\n%swant\n%s", tt.name, got, tt.want)
		}
	}
}

func TestLeavesAreReadWithTheirPlaces(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		read func([]byte) ([]Leaf, error)
		in   string
		want string
	}{
		{"JSON", JSON, "{\"a\": [1, \"b\", {\"c\\u0064\": \"e\\n\"}], // x\n \"f\": null, /* \"g\" */ }", "a.1|b|b\na.2.cd|e\n|e\\n\n"},
		{"YAML", YAML, "é: {a: b, c: 'd'}\ne:\n- \"f\\n\"\n- |\n  g\n---\nh: i # j\n", "é.a|b|b\né.c|d|d\ne.0|f\n|f\\n\ne.1|g\n|\nh|i|i\n"},
	} {
		leaves, err := tt.read([]byte(tt.in))
		var b strings.Builder
		for _, l := range leaves {
			fmt.Fprintf(&b, "%s|%s|%s\n", strings.Join(l.Path, "."), l.Value, tt.in[l.Start:l.End])
		}
		if b.String() != tt.want || err != nil {
			t.Errorf("%s: read is\n%s%v, want\n%s", tt.name, b.String(), err, tt.want)
		}
	}
}

func TestWhatIsDeepOrBrokenEndsInAnError(t *testing.T) {
	t.Parallel()
	for name, in := range map[string]string{
		"deep": strings.Repeat("[", 100), "open": `{"a": "b`, "cut": `{"a": `, "more": `{} {}`, "line": "{\"a\": \"b\n\"}",
	} {
		if _, err := JSON([]byte(in)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for name, in := range map[string]string{"deep": strings.Repeat("[", 100) + strings.Repeat("]", 100), "tab": "a:\n\tb: c", "long": strings.Repeat("a", maxYAML+1)} {
		if _, err := YAML([]byte(in)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if leaves, err := JSON([]byte(`{"a": "b", "c": }`)); err == nil || len(leaves) != 1 {
		t.Errorf("%d read, %v: want what stands before the error", len(leaves), err)
	}
}

func FuzzText(f *testing.F) {
	f.Add([]byte("A='b'\n[c]\nd: \"e\\n\" # f\n{\"g\": [\"h\"]}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, read := range []func([]byte) []Entry{Assignments, INI, Unit, TOML} {
			for _, e := range read(data) {
				if e.Start < 0 || e.End < e.Start || e.End > len(data) {
					t.Errorf("bytes %d to %d of %d", e.Start, e.End, len(data))
				}
			}
		}
		for _, read := range []func([]byte) ([]Leaf, error){JSON, YAML} {
			leaves, _ := read(data)
			for _, l := range leaves {
				if l.Start < 0 || l.End < l.Start || l.End > len(data) {
					t.Errorf("bytes %d to %d of %d", l.Start, l.End, len(data))
				}
			}
		}
	})
}
