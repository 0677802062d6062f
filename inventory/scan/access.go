package scan

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/inventory"
)

// A reach is who gets through the directories above a file. Root does in any case, and
// the owner of a file is taken to.
type reach struct {
	everyone bool
	groups   map[uint32]bool // whose members do where not everyone does; nil: of any group
}

// through is the reach one directory further.
func (h reach) through(st *unix.Stat_t) reach {
	if st.Mode&0o001 != 0 {
		return h
	}
	out := reach{groups: map[uint32]bool{}}
	if st.Mode&0o010 != 0 && (h.everyone || h.groups[st.Gid]) {
		out.groups[st.Gid] = true
	}
	return out
}

// reachOf is the reach of what is in a directory.
func (p *people) reachOf(path string) reach {
	h := reach{everyone: true}
	for i, part := 0, filepath.Clean(path); i <= len(part); i++ {
		if i > 0 && i < len(part) && part[i] != '/' {
			continue
		}
		var st unix.Stat_t
		if above := part[:max(i, 1)]; unix.Lstat(above, &st) == nil {
			h = h.through(&st)
		}
	}
	return h
}

// people are the users and groups of this host, as its files name them.
type people struct {
	users   map[uint32]string
	groups  map[uint32]string
	members map[uint32][]string
}

// maxPeople bounds what is read of a file of users.
const maxPeople = 4 << 20

func readPeople() *people {
	p := &people{users: map[uint32]string{}, groups: map[uint32]string{}, members: map[uint32][]string{}}
	primary := make(map[uint32][]string)
	for fields := range records("/etc/passwd", 7) {
		uid, gid := number(fields[2]), number(fields[3])
		if _, ok := p.users[uid]; !ok {
			p.users[uid] = fields[0]
		}
		primary[gid] = append(primary[gid], fields[0])
	}
	for fields := range records("/etc/group", 4) {
		gid := number(fields[2])
		p.groups[gid] = fields[0]
		p.members[gid] = primary[gid]
		for m := range strings.SplitSeq(fields[3], ",") {
			if m != "" && !slices.Contains(p.members[gid], m) {
				p.members[gid] = append(slices.Clip(p.members[gid]), m)
			}
		}
	}
	return p
}

// records are the lines of a file of users or groups, passwd(5) and group(5).
func records(path string, n int) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		f, err := os.Open(path)
		if err != nil {
			return // users have numbers then
		}
		defer f.Close()
		for lines := bufio.NewScanner(io.LimitReader(f, maxPeople)); lines.Scan(); {
			if fields := strings.Split(lines.Text(), ":"); len(fields) == n && !yield(fields) {
				return
			}
		}
	}
}

func number(s string) uint32 {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 1<<32 - 1 // nobody's
	}
	return uint32(n)
}

func (p *people) user(uid uint32) string {
	if name := p.users[uid]; name != "" {
		return inventory.Printable(name)
	}
	return "#" + strconv.FormatUint(uint64(uid), 10)
}

// facts fills in what the file of a finding tells.
func (p *people) facts(f *inventory.Finding, st *unix.Stat_t, h reach) {
	f.Owner, f.Mode = p.user(st.Uid), fmt.Sprintf("%04o", st.Mode&0o7777)
	f.Modified = time.Unix(st.Mtim.Unix()).UTC()
	if f.Leased {
		return
	}
	f.Access, f.Readers = p.readers(st, h)
}

// maxMembers bounds how many members of a group are named.
const maxMembers = 8

// readers returns who can read a file, as modes and groups have it.
func (p *people) readers(st *unix.Stat_t, h reach) (access string, list []string) {
	switch {
	case st.Mode&0o004 != 0 && h.everyone:
		return inventory.Everyone, []string{"everyone"}
	case st.Mode&0o444 == 0:
		return inventory.Owner, []string{"root"}
	}
	list = []string{"user " + p.user(st.Uid)}
	access = inventory.Owner
	add := func(gid uint32) {
		others := slices.DeleteFunc(slices.Clone(p.members[gid]), func(m string) bool { return m == p.users[st.Uid] || m == "root" })
		if len(others) == 0 {
			return
		}
		access = inventory.Group
		more := ""
		if len(others) > maxMembers {
			others, more = others[:maxMembers], fmt.Sprintf(" and %d more", len(others)-maxMembers)
		}
		list = append(list, inventory.Printable(fmt.Sprintf("group %s (%s%s)", p.group(gid), strings.Join(others, ", "), more)))
	}
	if st.Mode&0o040 != 0 && (h.everyone || h.groups[st.Gid]) {
		add(st.Gid)
	}
	if st.Mode&0o004 != 0 {
		for gid := range h.groups {
			if gid != st.Gid {
				add(gid)
			}
		}
	}
	return access, list
}

func (p *people) group(gid uint32) string {
	if name := p.groups[gid]; name != "" {
		return name
	}
	return "#" + strconv.FormatUint(uint64(gid), 10)
}
