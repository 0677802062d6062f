package gate

import (
	"bufio"
	"bytes"
	"cmp"
	"io"
	"os"
	"os/user"
	"slices"
	"strconv"
	"sync"
	"time"
)

// maxSubordinateLen bounds what is read of /etc/subuid, in bytes.
const maxSubordinateLen = 1 << 20

// persons maps user IDs to the users they belong to. Every user may have tens of
// thousands of subordinate IDs (subuid(5)), so limiting each of them would limit
// nothing: whatever runs under one counts for its owner.
type persons struct {
	path   string // /etc/subuid
	lookup func(name string) (uid uint32, ok bool)

	mu     sync.Mutex // guards the fields below
	stamp  stamp      // of the file that ranges are from
	ranges []subordinates
}

// A stamp distinguishes one version of a file from the next.
type stamp struct {
	modified time.Time
	size     int64
}

// subordinates are the user IDs from first to last, which belong to owner.
type subordinates struct{ first, last, owner uint32 }

func newPersons(path string) *persons { return &persons{path: path, lookup: lookupUser} }

func lookupUser(name string) (uint32, bool) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, false
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	return uint32(uid), err == nil
}

// of returns the user that a user ID belongs to: its owner's if it is a
// subordinate one, else itself.
func (p *persons) of(uid uint32) uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refresh()
	i, found := slices.BinarySearchFunc(p.ranges, uid, func(r subordinates, uid uint32) int {
		switch {
		case r.last < uid:
			return -1
		case r.first > uid:
			return 1
		}
		return 0
	})
	if !found {
		return uid
	}
	return p.ranges[i].owner
}

// refresh reads the file again if it has changed. A file that cannot be read has no
// subordinate IDs.
func (p *persons) refresh() {
	info, err := os.Stat(p.path)
	if err != nil || !info.Mode().IsRegular() {
		p.stamp, p.ranges = stamp{}, nil
		return
	}
	now := stamp{info.ModTime(), info.Size()}
	if now == p.stamp {
		return
	}
	f, err := os.Open(p.path)
	if err != nil {
		p.stamp, p.ranges = stamp{}, nil
		return
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSubordinateLen))
	if err != nil {
		return // the ranges that were read last are better than none
	}
	p.stamp, p.ranges = now, parseSubordinates(data, p.lookup)
}

// parseSubordinates reads lines of owner:first:count (subuid(5)) and returns their ranges in
// order and without overlap; of IDs that two ranges have, those of the lower
// one count. Lines of another form are left out, as newuidmap(1) does. An owner
// without an account is taken for the range's first ID: the range counts as one.
func parseSubordinates(data []byte, lookup func(string) (uint32, bool)) []subordinates {
	var all []subordinates
	owners := make(map[string]uint32)
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		fields := bytes.Split(lines.Bytes(), []byte(":"))
		if len(fields) != 3 {
			continue
		}
		first, err1 := strconv.ParseUint(string(fields[1]), 10, 32)
		count, err2 := strconv.ParseUint(string(fields[2]), 10, 32)
		if err1 != nil || err2 != nil || count == 0 {
			continue
		}
		name := string(fields[0])
		owner, known := owners[name]
		if !known {
			owner = ownerOf(name, uint32(first), lookup)
			owners[name] = owner
		}
		all = append(all, subordinates{uint32(first), uint32(min(first+count-1, 1<<32-1)), owner})
	}
	slices.SortStableFunc(all, func(a, b subordinates) int { return cmp.Compare(a.first, b.first) })
	var apart []subordinates
	for _, r := range all {
		if n := len(apart); n > 0 && r.first <= apart[n-1].last {
			if r.last <= apart[n-1].last {
				continue
			}
			r.first = apart[n-1].last + 1
		}
		apart = append(apart, r)
	}
	return apart
}

// ownerOf reads the first field: a login name or a user ID.
func ownerOf(name string, first uint32, lookup func(string) (uint32, bool)) uint32 {
	if uid, ok := lookup(name); ok {
		return uid
	}
	if uid, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(uid)
	}
	return first
}
