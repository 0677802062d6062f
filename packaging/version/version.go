// Package version says which build this is.
package version

import (
	"fmt"
	"runtime/debug"
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
