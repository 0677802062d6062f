package inventory

import (
	"regexp"
	"slices"
	"strings"

	"github.com/vouchd/vouchd/inventory/text"
)

var envFinder = finder{
	kind: Env,
	is: func(p place) bool {
		n := strings.ToLower(p.name)
		switch {
		case n == ".env" || n == ".envrc" || strings.HasPrefix(n, ".env."):
			return true
		case strings.HasSuffix(n, ".env"):
			return true
		}
		return p.up == "etc" && slices.Contains([]string{"default", "sysconfig", "conf.d"}, p.dir)
	},
	read: func(r *reader) error {
		sure := named
		if isTemplate(r.place) {
			sure = loose
		}
		for _, e := range text.Assignments(r.data) {
			r.variable(sure, e)
		}
		return nil
	},
	replace: func(f *Finding, path string) string {
		return "vouch migrate env " + path + " --credential-prefix " + prefixFor(f.Path)
	},
}

// prefixFor is what credentials of a file may be called: as the directory it is in, or
// app.
func prefixFor(path string) string {
	p := placeOf(path)
	name := p.dir
	if i := strings.IndexByte(p.name, '.'); i > 0 && (p.dir == "default" || p.dir == "sysconfig") {
		name = p.name[:i]
	} else if p.dir == "default" || p.dir == "sysconfig" {
		name = p.name
	}
	if !credentialName.MatchString(name) {
		return "app"
	}
	return name
}

var credentialName = regexp.MustCompile(`^[a-z][a-z0-9-]{1,30}$`)

// variable considers an assignment.
func (r *reader) variable(sure certainty, e text.Entry) {
	if e.Comment {
		sure = max(sure, loose)
		if isHandle(e.Value) {
			return
		}
	}
	r.consider(sure, e.Key, e.Key, e.Value, e.Start, e.End)
}

// isTemplate reports whether a file is there to be copied, and filled in then.
func isTemplate(p place) bool {
	n := strings.ToLower(p.name)
	for _, word := range []string{"example", "sample", "template", "dist", "default", "tmpl", "test", "ci", "schema"} {
		if slices.Contains(strings.FieldsFunc(n, func(r rune) bool { return strings.ContainsRune("._-", r) }), word) {
			return true
		}
	}
	return p.hasDir(foreignDirs)
}

// Directories of what tests and documents of a project are made with, and of somebody
// else's project that is kept within.
var (
	foreignDirs = []string{
		"testdata", "test-data", "test_data", "test-fixtures", "fixture", "fixtures", "__tests__", "__fixtures__", "mocks", "__mocks__",
		"example", "examples", "sample", "samples", "node_modules", "vendor", "site-packages", "dist-packages", "bower_components", "third_party", "third-party",
	}
	testDirs = []string{"test", "tests", "testing", "spec", "specs", "mock", "e2e", "testsuite", "integration", "integration-tests", "docs", "doc", "demo", "demos", "website", "unittests"}
)

func (p place) hasDir(names []string) bool {
	return slices.ContainsFunc(p.all[:len(p.all)-1], func(dir string) bool { return slices.Contains(names, strings.ToLower(dir)) })
}

// isTestData reports whether a key is one that tests are made with, or in one.
func (p place) isTestData() bool {
	return testProgram.MatchString(p.name) || p.hasDir(foreignDirs) || p.hasDir(testDirs) || slices.ContainsFunc(p.all[:len(p.all)-1], func(dir string) bool {
		return strings.HasSuffix(dir, "test") && dir != "latest" || strings.HasSuffix(dir, "tests") || testKeys.MatchString(dir)
	})
}

var testProgram = regexp.MustCompile(`(?i)[_.](test|tests|spec)[.][a-z]{1,4}$|^test_.*[.]py$|^conftest[.]py$`)

var testKeys = regexp.MustCompile(`(?i)^tests?[-_]?(certs?|keys?|data|files|fixtures|tls|ssl|pki)$`)
