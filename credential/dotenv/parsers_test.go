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

// Each prints, as JSON, what a library that programs read their files with makes
// of a folder of them.
const (
	pythonParser = `import dotenv, glob, json, os, sys
print(json.dumps({os.path.basename(p): {k: v for k, v in dotenv.dotenv_values(p).items() if v is not None} for p in glob.glob(sys.argv[1] + "/*")}))`
	npmParser = `const fs = require("fs"), [dir, module] = process.argv.slice(1)
console.log(JSON.stringify(Object.fromEntries(fs.readdirSync(dir).map(f => [f, require(module).parse(fs.readFileSync(dir + "/" + f))]))))`
)

// oddValues are what values are made of, in every order of three.
func oddValues() (values []string) {
	pieces := []string{"", "a", " ", "\t", "#", `"`, "'", "`", `\`, `\n`, `\"`, "$", "${B}", "$B", "=", "\u00a0", "\v", "\u2028", "\r", "é", "export "}
	for _, a := range pieces {
		for _, b := range pieces {
			for _, c := range pieces {
				values = append(values, a+b+c, `"`+a+b+c+`"`, `'`+a+b+c+`'`, `'x'`+a+b+c)
			}
		}
	}
	return values
}

func TestOtherParsersReadWhatIsClearTheSame(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	want := make(map[string]string)
	texts := make(map[string]string)
	for i, value := range oddValues() {
		text := "BEFORE=1\nA=" + value + "\nAFTER=2\n"
		file, err := dotenv.Parse([]byte(text))
		if err != nil || len(file.Variables) != 3 || file.Variables[1].Unclear != "" {
			continue
		}
		name := fmt.Sprint(i)
		want[name], texts[name] = string(file.Variables[1].Value.Reveal()), text
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, parser := range map[string][]string{
		"python-dotenv": {"python3", "-c", pythonParser, dir},
		"npm's dotenv":  {"node", "-e", npmParser, dir, os.Getenv("NODE_DOTENV")},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "python-dotenv" && exec.Command("python3", "-c", "import dotenv").Run() != nil {
				t.Skip("python3-dotenv is not installed")
			}
			if name != "python-dotenv" && os.Getenv("NODE_DOTENV") == "" {
				t.Skip("NODE_DOTENV names no folder with npm's dotenv")
			}
			out, err := exec.Command(parser[0], parser[1:]...).Output()
			var got map[string]map[string]string
			if err == nil {
				err = json.Unmarshal(out, &got)
			}
			if err != nil {
				t.Fatal(err)
			}
			for file, value := range want {
				if g, ok := got[file]["A"]; !ok || g != value || got[file]["AFTER"] != "2" {
					t.Errorf("%q: it reads %q, and here it is %q", texts[file], g, value)
				}
			}
			t.Logf("%d files", len(want))
		})
	}
}
