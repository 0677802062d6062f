//go:build clients

package dotenv_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	npmParser = `const fs = require("fs"), dotenv = require("dotenv"), dir = process.argv[2]
console.log(JSON.stringify(Object.fromEntries(fs.readdirSync(dir).map(f => [f, dotenv.parse(fs.readFileSync(dir + "/" + f))]))))`
	goParsers = `package main

import (
	"encoding/json"
	"os"
	"path/filepath"

	compose "github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/joho/godotenv"
)

func main() {
	read := func(file string) (map[string]string, error) { return godotenv.Read(file) }
	if os.Args[1] == "compose" {
		read = func(file string) (map[string]string, error) { return compose.Read(file) }
	}
	got := make(map[string]map[string]string)
	files, _ := filepath.Glob(os.Args[2] + "/*")
	for _, file := range files {
		if values, err := read(file); err == nil {
			got[filepath.Base(file)] = values
		}
	}
	json.NewEncoder(os.Stdout).Encode(got)
}
`
)

// The parsers of npm's dotenv, godotenv and Docker's compose, with the files of
// the latter two's own suites. They come from the registries, so that
// make test-clients runs this.
func TestOtherParsersReadWhatIsClearTheSame(t *testing.T) {
	dir := t.TempDir()
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir, cmd.Stderr = dir, t.Output()
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", strings.Join(args, " "), err)
		}
		return strings.TrimSpace(string(out))
	}
	for name, text := range map[string]string{"npm.js": npmParser, "main.go": goParsers} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run("npm", "install", "--no-fund", "--no-audit", "--silent", "dotenv@17.2.3")
	run("go", "mod", "init", "parsers")
	run("go", "get", "github.com/joho/godotenv@v1.5.1", "github.com/compose-spec/compose-go/v2@v2.16.2")
	run("go", "mod", "tidy")
	run("go", "build", "-o", "parsers", ".")
	c := newCorpus(t)
	c.addOddValues(t)
	for module, suite := range map[string]string{"github.com/joho/godotenv": "fixtures", "github.com/compose-spec/compose-go/v2": "dotenv/fixtures"} {
		files, err := filepath.Glob(filepath.Join(run("go", "list", "-m", "-f", "{{.Dir}}", module), suite, "*"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s has no suite: %v", module, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			c.add(t, string(text))
			for line := range strings.Lines(string(text)) {
				c.add(t, line)
			}
		}
	}
	for name, command := range map[string][]string{
		"npm's dotenv": {"node", filepath.Join(dir, "npm.js")},
		"godotenv":     {filepath.Join(dir, "parsers"), "godotenv"},
		"compose":      {filepath.Join(dir, "parsers"), "compose"},
	} {
		t.Run(name, func(t *testing.T) { c.check(t, command...) })
	}
}
