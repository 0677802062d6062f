package scan

import (
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/inventory"
	"github.com/vouchd/vouchd/secret"
)

// unitDirs are where systemd takes units from (systemd.unit(5)).
var unitDirs = []string{"/etc/systemd", "/run/systemd", "/usr/lib/systemd", "/usr/local/lib/systemd", "/lib/systemd"}

// maxLinks bounds the files that units name.
const maxLinks = 10_000

// unitLinks keeps the files that a unit names for later, and returns its other findings.
// A unit that systemd does not read, such as one in a project, says nothing of this
// host's files: then only those count that are scanned as well.
func (r *run) unitLinks(path string, data []byte, found []inventory.Finding) (rest []inventory.Finding) {
	inForce := slices.ContainsFunc(unitDirs, func(d string) bool { return isBelow(path, d) }) || strings.Contains(path, "/.config/systemd/user/")
	may := func(file string) bool {
		return len(r.links) < maxLinks && (inForce || slices.ContainsFunc(r.Dirs, func(d string) bool { return isBelow(file, d) }))
	}
	for _, file := range inventory.EnvironmentFiles(data) {
		if may(file) {
			r.links = append(r.links, link{file: file})
		}
	}
	for _, f := range found {
		if f.File == "" {
			rest = append(rest, f)
		} else if may(f.File) {
			r.links = append(r.links, link{f.File, f})
		}
	}
	return rest
}

// follow reads the files that units have named.
func (r *run) follow() {
	for _, l := range r.links {
		if r.ctx.Err() != nil || r.excluded(l.file) {
			continue
		}
		reach := r.people.reachOf(filepath.Dir(l.file))
		f, st, err := openFile(unix.AT_FDCWD, l.file)
		if err != nil {
			r.unread(l.file, err)
		}
		if f == nil {
			continue
		}
		data, err := readAll(f)
		f.Close()
		if err != nil {
			r.unread(l.file, err)
			continue
		}
		var found []inventory.Finding
		if l.at.File == "" {
			found, err = inventory.ReadFile(inventory.Env, l.file, data)
		} else if len(data) > 0 {
			l.at.Value = secret.Of(slices.Clone(data))
			found = []inventory.Finding{l.at}
		}
		clear(data)
		if err != nil {
			r.unread(l.file, err)
		}
		r.take(found, func(f *inventory.Finding) { r.people.facts(f, st, reach) })
	}
}
