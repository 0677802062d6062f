// Package version says which build this is.
package version

import (
	"fmt"
	"runtime/debug"
	"strings"
)

// release is set by the linker from the tag that is built.
var release = "dev"

// String names the release, the commit and the Go version.
func String() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return release
	}
	commit := ""
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			commit = " " + s.Value[:min(12, len(s.Value))]
		}
	}
	return fmt.Sprintf("%s%s %s", release, commit, info.GoVersion)
}

// Text is what a program says when asked for its version: String, and the
// modules that it is built of.
func Text(program string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s version %s\n", program, String())
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b.String()
	}
	for _, m := range info.Deps {
		path, version := m.Path, m.Version
		if r := m.Replace; r != nil {
			path, version = path+" => "+r.Path, r.Version
		}
		fmt.Fprintf(&b, "  %s %s\n", path, version)
	}
	return b.String()
}
