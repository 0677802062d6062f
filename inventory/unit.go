package inventory

import (
	"bytes"
	"strings"

	"github.com/vouchd/vouchd/inventory/text"
	"github.com/vouchd/vouchd/redact"
)

// unitFinder reads units of systemd and their drop-ins (systemd.exec(5)).
var unitFinder = finder{
	kind: Unit,
	is: func(p place) bool {
		if strings.HasSuffix(p.name, ".conf") && strings.HasSuffix(p.dir, ".d") {
			return isUnitName(strings.TrimSuffix(p.dir, ".d")) || p.dir == "service.d"
		}
		return isUnitName(p.name)
	},
	read: func(r *reader) error {
		for _, s := range text.Unit(r.data) {
			r.setting(s)
		}
		return nil
	},
	replace: func(_ *Finding, path string) string { return "vouch migrate unit " + path },
}

func isUnitName(name string) bool {
	for _, suffix := range []string{".service", ".socket", ".mount", ".swap", ".container"} {
		if strings.HasSuffix(name, suffix) && len(name) > len(suffix) {
			return true
		}
	}
	return false
}

// vouchdSockets begins the path of a socket from which vouchd gives units credentials.
const vouchdSockets = "/run/vouchd/"

// setting considers one line of a unit.
func (r *reader) setting(s text.Entry) {
	switch {
	case s.Key == "Environment":
		for _, e := range text.Words(s) {
			r.variable(named, e)
		}
	case s.Key == "SetCredential":
		if i := bytes.IndexByte(s.Value, ':'); i > 0 {
			r.whole("SetCredential "+string(s.Value[:i]), "", s.Value[i+1:], s.Start+i+1, s.End)
		}
	case s.Key == "LoadCredential":
		r.loadCredential(s)
	case strings.HasPrefix(s.Key, "Exec"):
		for _, found := range redact.Find(s.Value) {
			value := s.Value[found.Start:found.End]
			r.consider(loose, s.Key, s.Key, value, s.Start+found.Start, s.Start+found.End)
		}
	}
}

// loadCredential notes a credential that comes from a file. What is in it, and whether
// it is there, only the caller can find out.
func (r *reader) loadCredential(s text.Entry) {
	i := bytes.IndexByte(s.Value, ':')
	if i <= 0 {
		return // one that was given to the manager of the system
	}
	item, file := "LoadCredential "+string(s.Value[:i]), string(bytes.TrimSpace(s.Value[i+1:]))
	switch {
	case strings.HasPrefix(file, vouchdSockets):
		r.lease(item, s.Start)
	case strings.HasPrefix(file, "/"):
		f := r.add(item, nil, s.Start+i+1, s.End)
		f.File = file
	}
}

// EnvironmentFiles returns the files that a unit takes variables from. Names with
// specifiers are not among them.
func EnvironmentFiles(data []byte) (list []string) {
	for _, s := range text.Unit(data) {
		file := strings.TrimPrefix(strings.TrimSpace(string(s.Value)), "-")
		if s.Key == "EnvironmentFile" && strings.HasPrefix(file, "/") && !strings.ContainsAny(file, "%*?[") && len(list) < maxFindings {
			list = append(list, file)
		}
	}
	return list
}
