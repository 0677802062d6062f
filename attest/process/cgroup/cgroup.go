// Package cgroup says what the name of a control group tells: the system unit, the
// slice or the container that it was made for. Only what root alone can have made
// counts; names below that were chosen by somebody else.
package cgroup

import (
	"bytes"
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// A Hierarchy is which of the control group hierarchies systemd uses.
type Hierarchy bool

const (
	Unified Hierarchy = false // version 2, alone
	Named   Hierarchy = true  // name=systemd, on hybrid hosts and those of version 1
)

// Mounted looks at what is mounted, as systemd does: on a machine that
// has the named one, too, a container may use the unified one alone.
func Mounted() Hierarchy {
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
		return Unified
	}
	return Named
}

// Parse returns the control group that /proc/PID/cgroup names (cgroups(7)): lines
// of hierarchy:controllers:path. The path is relative to the daemon's control group namespace and may hold
// colons but no new line, which the kernel refuses in names.
func Parse(b []byte, h Hierarchy) (string, error) {
	var unified, named string
	for line := range bytes.Lines(b) {
		line, ok := bytes.CutSuffix(line, []byte("\n"))
		if !ok {
			return "", errors.New("the last line is cut short")
		}
		id, rest, ok1 := bytes.Cut(line, []byte(":"))
		controllers, path, ok2 := bytes.Cut(rest, []byte(":"))
		if !ok1 || !ok2 || !bytes.HasPrefix(path, []byte("/")) {
			return "", errors.New("a line is not of the form hierarchy:controllers:path")
		}
		target := &unified
		switch {
		case string(controllers) == "name=systemd":
			target = &named
		case string(id) != "0" || len(controllers) != 0:
			continue
		}
		if *target != "" {
			return "", errors.New("a hierarchy is listed twice")
		}
		*target = string(path)
	}
	switch {
	case named != "" && h == Named:
		return named, nil
	case unified != "":
		return unified, nil
	default:
		return "", errors.New("neither the unified hierarchy nor systemd's is mounted")
	}
}

// Unit returns the system unit of a control group, given without the leading
// slash, in the way of systemd: the first component below the slices.
// Whatever lies deeper was delegated to that unit and says nothing about
// others; a user's own units lie below user@UID.service, and are that unit
// here. Only the system manager can make control groups above the unit.
func Unit(cgroup string) (unit, slice string, ok bool) {
	slice = "-.slice"
	for part := range strings.SplitSeq(cgroup, "/") {
		name := unescape(part)
		if !isUnitName(name) {
			return "", "", false
		}
		if !strings.HasSuffix(name, ".slice") {
			return name, slice, true
		}
		slice = name
	}
	return "", "", false // in a slice itself
}

// Slice returns the innermost slice of a control group, whoever made it, and
// "" where there is none.
func Slice(cgroup string) (slice string) {
	for part := range strings.SplitSeq(cgroup, "/") {
		name := unescape(part)
		if !isUnitName(name) || !strings.HasSuffix(name, ".slice") {
			break
		}
		slice = name
	}
	return slice
}

// UserUnit returns the unit of a user's own service manager that a control
// group, given without the leading slash, belongs to, or "". The user chose
// its name.
func UserUnit(cgroup string) string {
	unit, _, ok := Unit(cgroup)
	if !ok || !strings.HasPrefix(unit, "user@") {
		return ""
	}
	_, below, ok := strings.Cut(cgroup, "/"+unit+"/")
	if !ok {
		return ""
	}
	unit, _, _ = Unit(below)
	return unit
}

// unescape takes off the underscore that systemd puts before a name that
// would be read as one of the kernel's files.
func unescape(part string) string { return strings.TrimPrefix(part, "_") }

var unitTypes = map[string]bool{
	"service": true, "scope": true, "slice": true, "socket": true, "mount": true, "swap": true,
}

// isUnitName reports whether systemd could have made a control group of that
// name for a unit (systemd.unit(5)).
func isUnitName(name string) bool {
	dot := strings.LastIndexByte(name, '.')
	if dot <= 0 || len(name) > 255 || !unitTypes[name[dot+1:]] {
		return false
	}
	if at := strings.IndexByte(name, '@'); at == 0 {
		return false
	}
	for i := range len(name) {
		c := name[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte(":-_.\\@", c) >= 0:
		default:
			return false
		}
	}
	return true
}
