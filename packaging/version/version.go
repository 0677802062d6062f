// Package version says which build this is.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
)

// release is set by the linker from the tag that is built.
var release = "dev"

// A Build is which build this is.
type Build struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"` // missing: built outside of a checkout
	Go       string `json:"go"`
	Platform string `json:"platform"` // operating system and architecture
}

// Of returns the build of this program.
func Of() Build {
	b := Build{Version: release, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				b.Commit = s.Value[:min(12, len(s.Value))]
			}
		}
	}
	return b
}

// String names the release, the commit and the Go version.
func String() string {
	b := Of()
	return strings.Join(strings.Fields(b.Version+" "+b.Commit+" "+b.Go), " ")
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
