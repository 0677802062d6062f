package dotenv_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/credential/dotenv"
)

const example = "\xef\xbb\xbf# keys of the example\r\n" +
	"\r\n" +
	"PLAIN=sk_live_1\r\n" +
	"export EXPORTED = two words # a comment\n" +
	"  SINGLE='it is $HOME # not a comment'# one\n" +
	"DOUBLE=\"a 'quoted' line\\nand another\"\n" +
	"LINES=\"-----BEGIN KEY-----\nMIIE\n-----END KEY-----\"\n" +
	"EMPTY=\n" +
	"ALSO_EMPTY='' # nothing\n" +
	"PASSED_THROUGH\n" +
	"export ALSO_PASSED\n" +
	"EQUALS=a=b==\n" +
	"TWICE=same\n" +
	"#OLD=sk_live_0\n" +
	"TWICE='same'\n" +
	"LAST=end"

var values = map[string]string{
	"PLAIN": "sk_live_1", "EXPORTED": "two words", "SINGLE": "it is $HOME # not a comment", "DOUBLE": "a 'quoted' line\nand another",
	"LINES": "-----BEGIN KEY-----\nMIIE\n-----END KEY-----", "EMPTY": "", "ALSO_EMPTY": "", "EQUALS": "a=b==", "TWICE": "same", "LAST": "end",
}

func TestValuesThatAllLoadersAgreeOn(t *testing.T) {
	t.Parallel()
	f, err := dotenv.Parse([]byte(example))
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	lines := make(map[string]int)
	for _, v := range f.Variables {
		if v.Unclear != "" {
			t.Errorf("%s is unclear: %s", v.Name, v.Unclear)
		}
		got[v.Name], lines[v.Name] = string(v.Value.Reveal()), v.Line
	}
	if !maps.Equal(got, values) {
		t.Errorf("values are %q, want %q", got, values)
	}
	if lines["LINES"] != 7 || lines["LAST"] != 18 || len(f.Variables) != 11 {
		t.Errorf("%d variables, on lines %v", len(f.Variables), lines)
	}
	if len(f.Comments) != 1 || f.Comments[0].Name != "OLD" || f.Comments[0].Line != 16 || string(f.Comments[0].Value.Reveal()) != "sk_live_0" {
		t.Errorf("comments that read as assignments: %+v", f.Comments)
	}
}

func TestReplacingChangesValuesAlone(t *testing.T) {
	t.Parallel()
	f, err := dotenv.Parse([]byte(example))
	if err != nil {
		t.Fatal(err)
	}
	handle := func(name string) (string, bool) {
		return "vouch:" + strings.ToLower(name), name != "EMPTY" && name != "EXPORTED"
	}
	got := spliced(example, f.Replace(handle))
	want := strings.NewReplacer(
		"'it is $HOME # not a comment'# one", "vouch:single # one", "ALSO_EMPTY='' # nothing", "ALSO_EMPTY=vouch:also_empty # nothing",
		"sk_live_1", "vouch:plain", "\"a 'quoted' line\\nand another\"", "vouch:double",
		"\"-----BEGIN KEY-----\nMIIE\n-----END KEY-----\"", "vouch:lines", "a=b==", "vouch:equals",
		"TWICE=same", "TWICE=vouch:twice", "'same'", "vouch:twice", "end", "vouch:last").Replace(example)
	if got != want {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
	if same := spliced(example, f.Replace(func(string) (string, bool) { return "", false })); same != example {
		t.Errorf("replacing nothing gives\n%q", same)
	}
}

func TestValuesThatLoadersReadDifferentlyAreTold(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`A=it's`:                 "quote or a backslash",
		`A=a\b`:                  "quote or a backslash",
		`A=a#b`:                  "beginning of a comment",
		`A=$HOME/x`:              "expand",
		`A=${HOME}`:              "expand",
		"A=a`id`":                "expand",
		`A="$HOME"`:              "expand",
		"A=\"`id`\"":             "expand",
		"A=`quoted`":             "not all know these quotes",
		`A='a\b'`:                "backslash",
		`A="a\tb"`:               "backslash",
		`A="a\\b"`:               "backslash",
		"A='a\r\nb'":             "carriage returns",
		"A='a\rb'":               "carriage returns",
		"A=a\rb":                 "carriage return",
		`A="cost: \$5"`:          "backslash",
		"A=\"a\\\nb\"":           "backslash",
		`export A=pa$$word # 12`: "expand",
		"A=a\t# b":               "beginning of a comment",
		`A=#secret`:              "beginning of a comment",
		`A= #secret`:             "beginning of a comment",
		`A= # a comment`:         "beginning of a comment",
		`A="a\"b"`:               "backslash",
		`A='${B}'`:               "even in single quotes",
		`A='a${B:-c}'`:           "even in single quotes",
		"A=a\u00a0":              "a space in it",
		"A=\u00a0a":              "a space in it",
		"A=a\u3000b":             "a space in it",
		"A=a\vb":                 "a space in it",
		"A=a\u2028b":             "a space in it",
		"A='a\u2028b'":           "line separator",
		"\xef\xbb\xbfA=a":        "byte order mark",
	} {
		f, err := dotenv.Parse([]byte(text + "\nB=b\n"))
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if v := f.Variables[0]; !strings.Contains(v.Unclear, want) || v.Value.Len() != 0 || f.Variables[1].Name != "B" {
			t.Errorf("%q is unclear for %q, want %q", text, v.Unclear, want)
		}
	}
}

func TestLinesThatMakeNoSenseAreToldAllAtOnceWithoutTheirText(t *testing.T) {
	t.Parallel()
	_, err := dotenv.Parse([]byte("A=a\nsk_live_canary is my key\n=b\n1A=c\nB='x' sk_live_canary\nC=\"sk_live_canary\n"))
	if err == nil || strings.Contains(err.Error(), "canary") {
		t.Fatalf("%v", err)
	}
	var lines []int
	for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
		one, ok := errors.AsType[*dotenv.Error](e)
		if !ok {
			t.Fatalf("%v", e)
		}
		lines = append(lines, one.Line)
	}
	if !slices.Equal(lines, []int{2, 3, 4, 5, 6}) {
		t.Errorf("lines %v: %v", lines, err)
	}
	for name, text := range map[string]string{
		"a zero byte": "A=\x00", "a zero byte in quotes": "A='\x00'", "a zero byte in a comment": "# \x00", "too long": strings.Repeat("#", dotenv.MaxLen+1),
	} {
		if _, err := dotenv.Parse([]byte(text)); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// Whatever the file, replacing every value gives a file that reads as the handles,
// and doing it again changes nothing.
func FuzzParse(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte("A='a\nb' # c\nexport B=\"\\n$X\"\n# D=e\nF\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := dotenv.Parse(slices.Clone(data))
		if err != nil {
			return
		}
		if same := spliced(string(data), file.Replace(func(string) (string, bool) { return "", false })); same != string(data) {
			t.Fatalf("replacing nothing changes %q to %q", data, same)
		}
		handle := func(name string) (string, bool) { return "vouch:" + name, true }
		replaced := spliced(string(data), file.Replace(handle))
		again, err := dotenv.Parse([]byte(replaced))
		if err != nil {
			t.Fatalf("%q becomes %q: %v", data, replaced, err)
		}
		if len(again.Variables) != len(file.Variables) {
			t.Fatalf("%q becomes %q", data, replaced)
		}
		for i, v := range again.Variables {
			if strings.Contains(v.Unclear, "byte order mark") {
				continue // which stays where it is
			}
			if v.Name != file.Variables[i].Name || string(v.Value.Reveal()) != "vouch:"+v.Name {
				t.Fatalf("%q becomes %q: %s is %q, %s", data, replaced, v.Name, v.Value.Reveal(), v.Unclear)
			}
		}
		if twice := spliced(replaced, again.Replace(handle)); twice != replaced {
			t.Fatalf("%q becomes %q", replaced, twice)
		}
	})
}

func spliced(text string, list []dotenv.Replacement) string {
	var b strings.Builder
	at := 0
	for _, r := range list {
		b.WriteString(text[at:r.Start] + r.Text)
		at = r.End
	}
	return b.String() + text[at:]
}
