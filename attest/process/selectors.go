package process

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"github.com/vouchd/vouchd/attest"
	"github.com/vouchd/vouchd/attest/process/cgroup"
)

func addUnit(s *statement, u *unitFacts) {
	if u.main {
		s.add("systemd", "main_process:", "true")
	}
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

// addUser states who the process is. In a user namespace that a user has made,
// it is whom that user likes among their own: only in a runtime's container that
// is said, where it is of the container.
func (a *Attester) addUser(ctx context.Context, s *statement, p *Peer, dir procDir, at *Attested, f *facts) (err error) {
	if f.users, err = a.host.userNS(dir, f.userNS); err != nil {
		return p.explain("user namespace", err)
	}
	if f.users.foreign && !f.users.byRoot {
		at.Gaps = append(at.Gaps, &Error{p.pid, "user", errors.New("it is in a user namespace that a user has made, where it takes on users and groups as that user likes; run it outside")})
		return nil
	}
	st := f.status
	id := func(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
	s.add("unix", "uid:", id(st.uid))
	s.add("unix", "user:", a.names.user(ctx, st.uid))
	s.add("unix", "gid:", id(st.gid))
	s.add("unix", "group:", a.names.group(ctx, st.gid))
	for _, gid := range st.groups {
		s.add("unix", "supplementary_gid:", id(gid))
		s.add("unix", "supplementary_group:", a.names.group(ctx, gid))
	}
	return nil
}

func (a *Attester) addProgram(s *statement, at *Attested, f *facts) {
	if !f.onHost {
		return
	}
	there := f.wants.Has(ofPath|ofIMA) && isAt(f.program, at.Path)
	if there {
		s.add("unix", "path:", at.Path)
	}
	s.add("unix", "sha256:", at.SHA256)
	s.add("unix", "fsverity:", f.verity)
	if !there || !f.wants.Has(ofIMA) {
		return
	}
	// The list has digests and paths. This file is at its path, and its digest is
	// of what is there.
	measured, err := a.measured.has(at.SHA256, at.Path)
	if err != nil {
		at.Gaps = append(at.Gaps, &Error{at.PID, "program's measurement", err})
	}
	if measured {
		s.add("ima", "sha256:", at.SHA256)
	}
}

// addGroup states what follows from the control group, and whether the process
// is one of a container.
func (a *Attester) addGroup(s *statement, at *Attested, f *facts) {
	id, runtime := "", ""
	if plainPath(at.Cgroup) && !strings.HasSuffix(at.Cgroup, " (deleted)") {
		s.add("cgroup", "path:", at.Cgroup)
		if below, ok := strings.CutPrefix(at.Cgroup, a.host.root+"/"); ok {
			s.add("cgroup", "slice:", cgroup.Slice(below))
			id, runtime = cgroup.Container(below)
			if unit, slice, ok := a.host.unit(at.Cgroup); ok {
				at.Unit = unit
				s.add("systemd", "id:", unit)
				s.add("systemd", "slice:", slice)
				s.add("systemd", "user_unit:", cgroup.UserUnit(below))
			}
		}
	}
	if id == "" && runtime == "" && f.pidNS != a.host.pidNS {
		runtime = "unknown"
	}
	s.add("container", "id:", id)
	s.add("container", "runtime:", runtime)
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
	s.add("apparmor", "profile:", f.sandbox.apparmor)
	s.add("selinux", "type:", f.sandbox.selinux)
}
