package process

import (
	"context"
	"strconv"
	"strings"

	"github.com/vouchd/vouchd/attest"
)

// selectors states the facts that hold for the process. A fact that cannot be
// stated as a valid selector is left out.
func (a *Attester) selectors(ctx context.Context, at *Attested, f *facts) attest.Selectors {
	s := statement{make(attest.Selectors, 0, 32+2*len(f.status.groups))}
	a.addUser(ctx, &s, f.status)
	a.addProgram(&s, at, f)
	a.addGroup(&s, at)
	a.addSandbox(&s, f)
	s.add("parent", "sha256:", f.parent.sha256)
	s.add("parent", "systemd:id:", f.parent.unit)
	if f.unit != nil {
		addUnit(&s, f.unit)
	}
	for _, sum := range f.trees {
		s.add("script", "tree_sha256:", sum)
	}
	return s.selectors
}

func addUnit(s *statement, u *unitFacts) {
	s.add("systemd", "invocation_id:", u.invocation)
	if plainPath(u.fragment) {
		s.add("systemd", "fragment_path:", u.fragment)
	}
	s.add("systemd", "fragment_sha256:", u.fragmentSHA256)
	for _, sum := range u.execSHA256 {
		s.add("systemd", "exec_sha256:", sum)
	}
	s.add("script", "path:", u.script)
	s.add("script", "sha256:", u.scriptSHA256)
}

// A statement collects selectors.
type statement struct{ selectors attest.Selectors }

// add states a fact, unless there is none.
func (s *statement) add(kind, key, fact string) {
	if fact != "" {
		s.selectors = append(s.selectors, attest.Selector{Type: kind, Value: key + fact})
	}
}

func (a *Attester) addUser(ctx context.Context, s *statement, st status) {
	id := func(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
	s.add("unix", "uid:", id(st.uid))
	s.add("unix", "user:", a.names.user(ctx, st.uid))
	s.add("unix", "gid:", id(st.gid))
	s.add("unix", "group:", a.names.group(ctx, st.gid))
	for _, gid := range st.groups {
		s.add("unix", "supplementary_gid:", id(gid))
		s.add("unix", "supplementary_group:", a.names.group(ctx, gid))
	}
}

func (a *Attester) addProgram(s *statement, at *Attested, f *facts) {
	if isAt(f.program, at.Path) {
		s.add("unix", "path:", at.Path)
	}
	s.add("unix", "sha256:", at.SHA256)
	s.add("unix", "fsverity:", f.verity)
	if !f.wants("ima") {
		return
	}
	measured, err := a.measured.has(at.SHA256)
	if err != nil {
		at.Gaps = append(at.Gaps, &Error{at.PID, "program's measurement", err})
	}
	if measured {
		s.add("ima", "sha256:", at.SHA256)
	}
}

func (a *Attester) addGroup(s *statement, at *Attested) {
	if !plainPath(at.Cgroup) || strings.HasSuffix(at.Cgroup, " (deleted)") {
		return
	}
	s.add("cgroup", "path:", at.Cgroup)
	below, ok := strings.CutPrefix(at.Cgroup, a.host.root+"/")
	if !ok {
		return
	}
	s.add("cgroup", "slice:", sliceOf(below))
	id, runtime := containerOf(below)
	s.add("container", "id:", id)
	s.add("container", "runtime:", runtime)
	if unit, slice, ok := a.host.unit(at.Cgroup); ok {
		at.Unit = unit
		s.add("systemd", "id:", unit)
		s.add("systemd", "slice:", slice)
		s.add("systemd", "user_unit:", userUnitOf(below))
	}
}

func (a *Attester) addSandbox(s *statement, f *facts) {
	for i, kind := range namespaceKinds {
		switch host := a.host.namespaces[i]; {
		case !f.sandbox.known, host == nsID{}:
		case f.sandbox.namespaces[i] == host:
			s.add("ns", kind+":", "host")
		default:
			s.add("ns", kind+":", "private")
		}
	}
	if f.status.noNewPrivs {
		s.add("nnp", "", "true")
	}
	if f.status.seccomp {
		s.add("seccomp", "", "filter")
	}
	s.add("apparmor", "profile:", f.sandbox.apparmor)
	s.add("selinux", "type:", f.sandbox.selinux)
}
