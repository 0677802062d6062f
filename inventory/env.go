package inventory

import (
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
		return slices.Contains([]string{"/etc/default", "/etc/sysconfig", "/etc/conf.d"}, strings.TrimSuffix(p.path, "/"+p.name))
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
	replace: func(_ *Finding, path string) string {
		return "vouch migrate env " + path + " --credential-prefix app"
	},
}

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
	return p.isTestData()
}

// isTestData reports whether a file is among those that a project's tests or documents
// are made with, or of somebody else's project that is kept within.
func (p place) isTestData() bool {
	for _, dir := range p.all[:len(p.all)-1] {
		switch strings.ToLower(dir) {
		case "test", "tests", "testing", "testdata", "test-data", "test_data", "test-fixtures", "fixture", "fixtures", "__tests__", "spec", "specs",
			"example", "examples", "sample", "samples", "mock", "mocks", "e2e", "integration", "demo", "demos", "docs", "doc", "website",
			"node_modules", "vendor", "site-packages", "dist-packages", "bower_components", "testsuite", "unittests", "third_party", "third-party":
			return true
		}
	}
	return false
}
