package process

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// An image is what the kernel noted when it began to run the process's program:
// the auxiliary vector, as its bytes. It holds addresses that every exec draws
// anew at random, such as that of AT_RANDOM on the stack.
type image string

func (d procDir) image(buf *buffer) (image, error) {
	b, err := d.read("auxv", buf)
	return image(b), err
}

// unfinished reports whether the process is amid an exec, and has no vector yet.
func (i image) unfinished() bool { return len(i) <= 16 }

// entry returns the address at which the program begins (AT_ENTRY).
func (i image) entry() (uint64, error) {
	const atEntry = 9
	b := []byte(i)
	word := 8
	// The vector of a program of 32 bits has shorter words: what is read as the
	// first key would then hold the first value, too.
	if len(b) >= 8 && binary.NativeEndian.Uint64(b) > 1<<32 {
		word = 4
	}
	read := func(at int) uint64 {
		if word == 4 {
			return uint64(binary.NativeEndian.Uint32(b[at:]))
		}
		return binary.NativeEndian.Uint64(b[at:])
	}
	for at := 0; at+2*word <= len(b); at += 2 * word {
		if read(at) == atEntry {
			return read(at + word), nil
		}
	}
	return 0, errors.New("the kernel does not tell where it begins")
}

// maxMaps bounds what is read of the mappings of a process. Those of the program
// are among the first: they are in the order of addresses.
const maxMaps = 8 << 20

// runsItsProgram returns an error unless the code at which the process has begun
// is mapped from the file that it shows as its program. In a user namespace of
// their own any user can have a process show any file as that, also one outside
// that shares its memory (PR_SET_MM_MAP), but not while the file it really runs
// is mapped. The kernel does not tell whether what is mapped is what runs.
func (d procDir) runsItsProgram(begin image, program fileID, path string) error {
	entry, err := begin.entry()
	if err != nil {
		return err
	}
	fd, err := unix.Openat(int(d), "maps", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var found bool
	err = readLines(fd, maxMaps, func(line []byte) (more bool, err error) {
		m, err := parseMapping(string(line))
		if err != nil || m.end <= entry {
			return true, err
		}
		// On an overlay the mapping may be of the file below it.
		found = m.start <= entry && m.executable && (m.inode == program.ino || m.path == strings.ReplaceAll(path, "\n", `\012`))
		return false, nil
	})
	if err == nil && !found {
		err = errors.New("it does not run the file that it shows as its program: the link was set (PR_SET_MM), or the program has replaced its code")
	}
	return err
}

// A mapping is a line of /proc/PID/maps.
type mapping struct {
	start, end uint64
	executable bool
	inode      uint64 // 0 for none
	path       string
}

// parseMapping follows proc_pid_maps(5).
func parseMapping(line string) (m mapping, err error) {
	fields := strings.SplitN(line, " ", 6)
	if len(fields) < 5 || len(fields[1]) < 3 {
		return m, fmt.Errorf("mapping %q is not of the form that is known", line)
	}
	start, end, _ := strings.Cut(fields[0], "-")
	var err1, err2, err3 error
	m.start, err1 = strconv.ParseUint(start, 16, 64)
	m.end, err2 = strconv.ParseUint(end, 16, 64)
	m.inode, err3 = strconv.ParseUint(fields[4], 10, 64)
	m.executable = fields[1][2] == 'x'
	if len(fields) == 6 {
		m.path = strings.TrimLeft(fields[5], " ")
	}
	return m, errors.Join(err1, err2, err3)
}

// addressesStay reports whether the process draws no addresses at random
// (personality(2)), so that one exec looks like another. Where nobody may trace
// (Yama's ptrace_scope=3) the kernel does not tell.
func (d procDir) addressesStay(buf *buffer) (bool, error) {
	const addrNoRandomize = 0x0040000
	b, err := d.read("personality", buf)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 16, 32)
	return n&addrNoRandomize != 0, err
}

// A start is that of a program by one process, and by what it has forked since.
type start struct {
	image   image
	program fileID
}

// starts remembers those of which a process was seen to run what it shows. Their
// addresses, drawn at random, tell one from all others.
type starts struct {
	mu   sync.Mutex // guards seen
	seen map[start]bool
}

const maxStarts = 2048

func (s *starts) has(one start) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[one]
}

func (s *starts) add(one start) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil || len(s.seen) >= maxStarts {
		s.seen = make(map[start]bool)
	}
	s.seen[one] = true
}
