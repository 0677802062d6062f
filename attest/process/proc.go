package process

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/attest/process/cgroup"
)

// maxFileLen bounds what is read of one file of /proc, in bytes: a status with
// some thousand supplementary groups, or a dozen control group hierarchies at
// the longest path each.
const maxFileLen = 64 << 10

// A procDir is a handle of /proc/PID. Once the process is gone, every read
// through it fails, also if its PID lives again.
type procDir int

func openDir(pid int) (procDir, error) {
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return procDir(fd), err
}

func (d procDir) close() { unix.Close(int(d)) }

// A buffer is reused between reads of /proc files. What is read into it is
// valid until the next read.
type buffer struct{ b []byte }

var buffers = sync.Pool{New: func() any { return &buffer{make([]byte, 4096)} }}

// read returns the contents of one file of the process.
func (d procDir) read(name string, buf *buffer) ([]byte, error) {
	fd, err := unix.Openat(int(d), name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if len(buf.b) == 0 {
		buf.b = make([]byte, 4096)
	}
	for n := 0; ; {
		if n == len(buf.b) {
			if n >= maxFileLen {
				return nil, fmt.Errorf("%s is longer than %d bytes", name, maxFileLen)
			}
			buf.b = append(buf.b, make([]byte, n)...)
		}
		m, err := unix.Read(fd, buf.b[n:])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, err
		case m == 0:
			return buf.b[:n], nil
		default:
			// These files are made whole by one read: what does not fill the
			// buffer is all there is.
			if n += m; n < len(buf.b) {
				return buf.b[:n], nil
			}
		}
	}
}

// cgroup returns the process's control group.
func (d procDir) cgroup(h cgroup.Hierarchy, buf *buffer) (string, error) {
	b, err := d.read("cgroup", buf)
	if err != nil {
		return "", err
	}
	return cgroup.Parse(b, h)
}

// A stat is what /proc/PID/stat says that is of use here.
type stat struct {
	start uint64 // start of the process, in ticks since boot
	image image
}

func (d procDir) stat(buf *buffer) (stat, error) {
	b, err := d.read("stat", buf)
	if err != nil {
		return stat{}, err
	}
	return parseStat(b)
}

// parseStat follows proc_pid_stat(5). The second field is the program's name
// in parentheses and may itself hold spaces, parentheses and new lines; nothing
// after it can hold a parenthesis.
func parseStat(b []byte) (stat, error) {
	const last = 47 // numbers of fields, from 1
	end := bytes.LastIndexByte(b, ')')
	if end < 0 {
		return stat{}, errors.New("stat names no program")
	}
	var st stat
	number := 2
	for field := range bytes.FieldsSeq(b[end+1:]) {
		var into *uint64
		switch number++; number {
		case 22:
			into = &st.start
		case 26:
			into = &st.image.code
		case 28:
			into = &st.image.stack
		case 45:
			into = &st.image.data
		case last:
			into = &st.image.heap
		default:
			continue
		}
		var err error
		if *into, err = strconv.ParseUint(string(field), 10, 64); err != nil {
			return stat{}, fmt.Errorf("stat field %d: %w", number, err)
		}
	}
	if number < last {
		return stat{}, fmt.Errorf("stat has %d fields, fewer than %d", number, last)
	}
	return st, nil
}

// maxGroups bounds the supplementary groups of a process that is attested, as
// each becomes a selector.
const maxGroups = 1024

// A status is what /proc/PID/status says that is of use here.
type status struct {
	parent     int       // PID, 0 where it is not visible
	uid, gid   uint32    // effective
	uids, gids [4]uint32 // real, effective, saved and for files
	groups     []uint32
	permitted  uint64 // capabilities
	noNewPrivs bool
	seccomp    bool // a seccomp filter is in force
	tracer     int  // PID of the tracing process, or 0
}

// equal reports whether the credentials are the same.
func (s status) equal(t status) bool {
	return s.uids == t.uids && s.gids == t.gids && slices.Equal(s.groups, t.groups) &&
		s.permitted == t.permitted && s.noNewPrivs == t.noNewPrivs && s.seccomp == t.seccomp && s.tracer == t.tracer
}

func (d procDir) status(buf *buffer) (status, error) {
	b, err := d.read("status", buf)
	if err != nil {
		return status{}, err
	}
	return parseStatus(b)
}

// parseStatus follows proc_pid_status(5). The kernel escapes new lines in the
// program's name, so that every line is the kernel's own.
func parseStatus(b []byte) (status, error) {
	var s status
	var seen int
	for line := range bytes.Lines(b) {
		key, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			return status{}, errors.New("status has a line without a colon")
		}
		var err error
		switch string(key) {
		case "Uid":
			s.uids, err = four(value)
			s.uid = s.uids[1]
			seen++
		case "Gid":
			s.gids, err = four(value)
			s.gid = s.gids[1]
			seen++
		case "Groups":
			s.groups, err = ids(value)
			seen++
		case "PPid":
			s.parent, err = strconv.Atoi(string(bytes.TrimSpace(value)))
		case "CapPrm":
			s.permitted, err = strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64)
			seen++
		case "TracerPid":
			s.tracer, err = strconv.Atoi(string(bytes.TrimSpace(value)))
		case "NoNewPrivs":
			s.noNewPrivs = string(bytes.TrimSpace(value)) == "1"
		case "Seccomp":
			s.seccomp = string(bytes.TrimSpace(value)) == "2" // SECCOMP_MODE_FILTER
		}
		if err != nil {
			return status{}, fmt.Errorf("status line %s: %w", key, err)
		}
	}
	if seen != 4 {
		return status{}, errors.New("status does not have one line each of Uid, Gid, Groups and CapPrm")
	}
	return s, nil
}

// four returns the four IDs of a line: real, effective, saved and for files.
func four(value []byte) ([4]uint32, error) {
	list, err := ids(value)
	if err != nil {
		return [4]uint32{}, err
	}
	if len(list) != 4 {
		return [4]uint32{}, fmt.Errorf("want 4 IDs, got %d", len(list))
	}
	return [4]uint32(list), nil
}

func ids(value []byte) ([]uint32, error) {
	var list []uint32
	for field := range bytes.FieldsSeq(value) {
		n, err := strconv.ParseUint(string(field), 10, 32)
		if err != nil {
			return nil, err
		}
		if len(list) == maxGroups {
			return nil, fmt.Errorf("more than %d IDs", maxGroups)
		}
		list = append(list, uint32(n))
	}
	return list, nil
}
