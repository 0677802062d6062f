package process

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/attest/process/file"
)

// An image is where the kernel laid out the program that the process runs, of
// proc_pid_stat(5). Every exec draws stack and heap anew, at random.
type image struct {
	code  uint64 // where the program's executable segment begins
	data  uint64 // where its data do
	heap  uint64 // start of the area that brk(2) extends
	stack uint64
}

func (d procDir) image(buf *buffer) (image, error) {
	st, err := d.stat(buf)
	return st.image, err
}

// unfinished reports whether the process is amid an exec, and has no code or no
// stack yet.
func (i image) unfinished() bool { return i.code == 0 || i.stack == 0 }

// maxMaps bounds what is read of the mappings of a process. Those of the program
// are among the first: they are in the order of addresses.
const maxMaps = 8 << 20

// runsItsProgram returns an error unless the code at which the process has begun
// is mapped from the file that it shows as its program. In a user namespace of
// their own any user can have a process show any file as that, also one outside
// that shares its memory (PR_SET_MM_MAP), but not while the file it really runs
// is mapped. The kernel does not tell whether what is mapped is what runs.
func (d procDir) runsItsProgram(begin image, program file.ID, path string) error {
	entry := begin.code
	if entry <= 1 { // proc_pid_stat(5)
		return errors.New("the kernel does not tell where its code begins (the daemon needs CAP_SYS_PTRACE)")
	}
	fd, err := unix.Openat(int(d), "maps", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var found bool
	err = file.ReadLines(fd, maxMaps, func(line []byte) (more bool, err error) {
		m, err := parseMapping(string(line))
		if err != nil || m.end <= entry {
			return true, err
		}
		// On an overlay the mapping may be of the file below it.
		found = m.start <= entry && m.executable && (m.inode == program.Ino || m.path == strings.ReplaceAll(path, "\n", `\012`))
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

// A start is that of a program by one process, and by what it has forked since.
type start struct {
	image   image
	program file.ID
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
