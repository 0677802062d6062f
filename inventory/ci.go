package inventory

import (
	"bytes"
	"regexp"
	"slices"
	"strings"

	"github.com/vouchd/vouchd/redact"
)

// ciFinder reads pipelines. They are documents of YAML, or programs, with shell in them,
// so it looks for assignments of any form.
var ciFinder = finder{
	kind: CI,
	is: func(p place) bool {
		n := strings.ToLower(p.name)
		yaml := strings.HasSuffix(n, ".yml") || strings.HasSuffix(n, ".yaml")
		switch {
		case slices.Contains([]string{".gitlab-ci.yml", "jenkinsfile", ".travis.yml", "bitbucket-pipelines.yml", ".drone.yml", "appveyor.yml", ".appveyor.yml", ".woodpecker.yml", "cloudbuild.yaml", ".cirrus.yml"}, n):
			return true
		case strings.HasPrefix(n, "azure-pipelines") && yaml, strings.HasPrefix(n, "jenkinsfile."), strings.HasSuffix(n, ".gitlab-ci.yml"):
			return true
		}
		return yaml && (p.dir == "workflows" && (p.up == ".github" || p.up == ".gitea" || p.up == ".forgejo") || p.dir == ".circleci" || p.dir == ".buildkite" ||
			slices.Contains(p.all, ".gitlab") || len(p.all) > 3 && p.all[len(p.all)-4] == ".github" && p.up == "actions")
	},
	read:    func(r *reader) error { r.loose(); return nil },
	replace: migrateFile,
	hint: func(p place) string {
		at := "with the pipeline's own secrets"
		switch {
		case slices.Contains(p.all, ".github"):
			at = "with gh secret set"
		case strings.HasSuffix(p.name, ".gitlab-ci.yml") || slices.Contains(p.all, ".gitlab"):
			at = "as a masked variable (Settings, CI/CD, Variables)"
		case p.dir == ".circleci":
			at = "in a context (Organization Settings, Contexts)"
		case strings.HasPrefix(strings.ToLower(p.name), "azure-pipelines"):
			at = "in a variable group, as a secret"
		case strings.HasPrefix(strings.ToLower(p.name), "jenkinsfile"):
			at = "with Jenkins' credentials, which credentials() reads"
		}
		return "rotate it, and keep the new one " + at + "; it stays in the history of the repository"
	},
}

// looseLine is NAME: VALUE or NAME=VALUE anywhere in a line.
var looseLine = regexp.MustCompile(`["']?([A-Za-z_][A-Za-z0-9_.-]*)["']?[ \t]*(?::=|=>|[:=])[ \t]*["']?([^\s"'#,;]+)`)

// loose considers text that anybody may have written as an example: what has a vendor's
// shape, and what is random and named as a secret.
func (r *reader) loose() {
	r.shapes()
	shaped := len(r.found)
	name := "" // of a variable whose value is on a line of its own
	for at := 0; at < len(r.data); {
		line := r.data[at:]
		if i := bytes.IndexByte(line, '\n'); i >= 0 {
			line = line[:i]
		}
		for _, m := range looseLine.FindAllSubmatchIndex(line[:min(len(line), 8<<10)], 20) {
			key, start, end := string(line[m[2]:m[3]]), at+m[4], at+m[5]
			if key == "value" {
				key = name
			}
			if key == "name" {
				name = string(line[m[4]:m[5]])
			}
			if !slices.ContainsFunc(r.found[:shaped], func(f Finding) bool { return f.Start < end && start < f.End }) {
				r.consider(loose, key, key, line[m[4]:m[5]], start, end)
			}
		}
		at += len(line) + 1
	}
}

// shapes considers what has a vendor's shape, wherever it stands.
func (r *reader) shapes() {
	for _, found := range redact.Find(r.data) {
		value := r.data[found.Start:found.End]
		made := found.Shape == "private-key" || found.Shape == "jwt" || found.Shape == "age-key" // by everybody, and so by tests
		if len(r.found) >= maxFindings {
			return
		}
		if made && (r.place.isTestData() || found.Shape == "private-key" && !isPEMKey(value)) {
			continue
		}
		r.consider(loose, "", r.nameBefore(found.Start), value, found.Start, found.End)
	}
}

// mostName bounds the name of a value in text.
const mostName = 100

// nameBefore returns what a value is assigned to, if that is on its line.
func (r *reader) nameBefore(at int) string {
	line := r.data[max(0, at-3*mostName):at]
	line = line[bytes.LastIndexByte(line, '\n')+1:]
	end := bytes.LastIndexAny(line, ":=")
	if end < 0 {
		return "text"
	}
	line = bytes.TrimRight(line[:end], " \t\"':=")
	start := len(line)
	for start > 0 && len(line)-start < mostName && (isWordChar(line[start-1]) || line[start-1] == '-' || line[start-1] == '.') {
		start--
	}
	if start == len(line) {
		return "text"
	}
	return string(line[start:])
}
