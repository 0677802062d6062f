package dotenv_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vouchd/vouchd/credential/dotenv"
)

// A corpus is files that a library's parser is to read as ours does.
type corpus struct {
	dir   string
	texts map[string]string            // by name
	want  map[string]map[string]string // what is clear in each
}

func newCorpus(t *testing.T) *corpus {
	return &corpus{t.TempDir(), make(map[string]string), make(map[string]map[string]string)}
}

// add keeps what is clear of a text.
func (c *corpus) add(t *testing.T, text string) {
	t.Helper()
	file, err := dotenv.Parse([]byte(text))
	if err != nil {
		return
	}
	clear := make(map[string]string)
	for _, v := range file.Variables {
		if v.Unclear != "" {
			return
		}
		clear[v.Name] = string(v.Value.Reveal())
	}
	name := fmt.Sprint(len(c.texts))
	c.texts[name], c.want[name] = text, clear
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// addOddValues adds what values are made of, in every order of three.
func (c *corpus) addOddValues(t *testing.T) {
	pieces := []string{"", "a", " ", "\t", "#", `"`, "'", "`", `\`, `\n`, `\"`, "$", "${B}", "$B", "=", "\u00a0", "\v", "\u2028", "\r", "é", "export "}
	for _, x := range pieces {
		for _, y := range pieces {
			for _, z := range pieces {
				for _, value := range []string{x + y + z, `"` + x + y + z + `"`, `'` + x + y + z + `'`, `'x'` + x + y + z} {
					c.add(t, "BEFORE=1\nA="+value+"\nAFTER=2\n")
				}
			}
		}
	}
}

// check runs a program that prints, as JSON, what its library makes of the files. One
// that it refuses whole is none that a program could have been started with.
func (c *corpus) check(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command(args[0], append(args[1:], c.dir)...)
	cmd.Stderr = t.Output()
	out, err := cmd.Output()
	var got map[string]map[string]string
	if err == nil {
		err = json.Unmarshal(out, &got)
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(got) < 1000 || len(c.want)-len(got) > len(c.want)/100 {
		t.Fatalf("it reads %d files of %d", len(got), len(c.want))
	}
	for name, want := range c.want {
		if got[name] == nil {
			continue
		}
		for variable, value := range want {
			if g, ok := got[name][variable]; !ok || g != value {
				t.Errorf("%q: it reads %s as %q, and here it is %q", c.texts[name], variable, g, value)
			}
		}
	}
}

func TestPythonsParserReadsWhatIsClearTheSame(t *testing.T) {
	t.Parallel()
	c := newCorpus(t)
	c.addOddValues(t)
	c.check(t, "/usr/bin/python3", "-c", `import dotenv, glob, json, os, sys
print(json.dumps({os.path.basename(p): {k: v for k, v in dotenv.dotenv_values(p).items() if v is not None} for p in glob.glob(sys.argv[1] + "/*")}))`)
}
