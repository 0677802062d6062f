package file

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A mountTable is what one mount namespace has mounted. It is read again after
// a change, of which the kernel tells.
//
// What is said of a file holds because the caller has it open: its file system
// stays mounted somewhere, so that nobody else has its device number.
type mountTable struct {
	mu     sync.Mutex // guards the fields below
	fd     int        // of the table, -1 until it is read first
	path   string
	mounts []*mount // in the order of mounting
	byID   map[uint64]*mount
	byDev  map[uint64]*mount // one of each file system's
}

func newMountTable(path string) *mountTable { return &mountTable{fd: -1, path: path} }

// A mount is one line of the table.
type mount struct {
	id      uint64
	dev     uint64 // of the file system, which need not be that of its files
	point   string
	fstype  string
	source  string
	options string // the file system's

	verdict atomic.Pointer[verdict] // nil until it was judged
}

// A verdict is why users may show other contents, nil if they cannot.
type verdict struct{ err error }

const (
	maxMountTable = 16 << 20 // bytes
	maxPeerTable  = 1 << 20  // bytes; a user may mount what they like in their own
)

// refresh reads the table if it has changed.
func (t *mountTable) refresh() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fd < 0 {
		fd, err := unix.Open(t.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("reading %s: %w", t.path, err)
		}
		t.fd = fd
	} else {
		fds := [1]unix.PollFd{{Fd: int32(t.fd), Events: unix.POLLPRI}}
		if n, err := unix.Poll(fds[:], 0); err == nil && n == 0 {
			return nil
		}
	}
	t.mounts, t.byID, t.byDev = nil, nil, nil
	mounts, err := readMounts(t.fd, maxMountTable)
	if err != nil {
		unix.Close(t.fd)
		t.fd = -1
		return fmt.Errorf("reading %s: %w", t.path, err)
	}
	t.mounts = mounts
	t.byID = make(map[uint64]*mount, len(mounts))
	t.byDev = make(map[uint64]*mount, len(mounts))
	for _, m := range mounts {
		t.byID[m.id] = m
		t.byDev[m.dev] = m
	}
	return nil
}

func (t *mountTable) withID(id uint64) *mount {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id]
}

func (t *mountTable) withDevice(dev uint64) *mount {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byDev[dev]
}

// over returns the mount that a path lies in.
func (t *mountTable) over(path string) (in *mount) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.mounts {
		below := m.point == "/" || path == m.point || strings.HasPrefix(path, m.point+"/")
		if below && (in == nil || len(m.point) >= len(in.point)) {
			in = m
		}
	}
	return in
}

func readMounts(fd, limit int) ([]*mount, error) {
	var mounts []*mount
	err := ReadLines(fd, limit, func(line []byte) (bool, error) {
		m, err := parseMount(string(line))
		mounts = append(mounts, m)
		return true, err
	})
	return mounts, err
}

var lineBuffers = sync.Pool{New: func() any { b := make([]byte, 4096); return &b }}

// ReadLines hands the lines of a file of /proc, which has at most limit bytes, to
// each, until that returns false. A line is valid during its call.
func ReadLines(fd, limit int, each func(line []byte) (bool, error)) error {
	buf := lineBuffers.Get().(*[]byte)
	defer lineBuffers.Put(buf)
	b := *buf
	var held, total int
	for {
		// The first lines are often enough, and the kernel makes no more than it
		// is asked for.
		upTo := len(b)
		if total == 0 {
			upTo = min(upTo, 512)
		}
		n, err := unix.Pread(fd, b[held:upTo], int64(total))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			if held > 0 {
				return errors.New("the last line is cut short")
			}
			return nil
		}
		if total += n; total > limit {
			return fmt.Errorf("it is longer than %d bytes", limit)
		}
		rest := b[:held+n]
		for {
			end := slices.Index(rest, '\n')
			if end < 0 {
				break
			}
			if ok, err := each(rest[:end]); err != nil || !ok {
				return err
			}
			rest = rest[end+1:]
		}
		if held = copy(b, rest); held == len(b) {
			b = append(b, make([]byte, len(b))...)
			*buf = b
		}
	}
}

// parseMount follows proc_pid_mountinfo(5).
func parseMount(line string) (*mount, error) {
	fields := strings.Split(line, " ")
	dash := slices.Index(fields, "-")
	if dash < 6 || len(fields) < dash+4 {
		return nil, fmt.Errorf("mount %q is not of the form that is known", line)
	}
	id, err := strconv.ParseUint(fields[0], 10, 64)
	if err != nil {
		return nil, err
	}
	major, minor, _ := strings.Cut(fields[2], ":")
	maj, err1 := strconv.ParseUint(major, 10, 32)
	min, err2 := strconv.ParseUint(minor, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	return &mount{
		id:      id,
		dev:     unix.Mkdev(uint32(maj), uint32(min)),
		point:   unescapeMount(fields[4]),
		fstype:  fields[dash+1],
		source:  unescapeMount(fields[dash+2]),
		options: unescapeMount(fields[dash+3]),
	}, nil
}

// unescapeMount takes back the octal escapes of blanks and backslashes.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Systems are the file systems that the host itself has mounted.
type Systems struct {
	host *mountTable // PID 1's
	own  *mountTable // the daemon's, which may be in a mount namespace of its own
}

// NewSystems returns those of the machine, or container, that it is called on.
func NewSystems() *Systems {
	return &Systems{newMountTable("/proc/1/mountinfo"), newMountTable("/proc/self/mountinfo")}
}

// Device returns the device number of the file system that a pinned file is on, if
// that is one of the host's own, whose contents no user decides: PID 1 has it
// mounted, it is not FUSE, and it is no overlay of what users can write to. The file
// is one that the process sees whose directory of /proc is open as proc.
func (s *Systems) Device(f Pinned, proc int) (dev uint64, err error) {
	return s.device(f.mount, func() (*mount, error) { return mountOf(proc, f.mount) })
}

// OnHost returns an error unless the path, which holds no symbolic links, leads
// to a file or directory on a file system of the host's, as the daemon sees it.
func (s *Systems) OnHost(path string) error {
	f, err := Pin(unix.AT_FDCWD, path, unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = s.device(f.mount, func() (*mount, error) {
		err := s.own.refresh()
		return s.own.withID(f.mount), err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// device is Device of a mount that is one of the table of a mount namespace, which
// is read by more. A file of the mount is open meanwhile.
func (s *Systems) device(mountID uint64, more func() (*mount, error)) (dev uint64, err error) {
	if err := s.host.refresh(); err != nil {
		return 0, err
	}
	m := s.host.withID(mountID)
	if m == nil {
		theirs, err := more()
		if err != nil {
			return 0, err
		}
		if theirs == nil {
			return 0, errors.New("it is on no file system that the host or its own mount namespace has mounted: in memory (memfd), or on what another has mounted")
		}
		if m = s.host.withDevice(theirs.dev); m == nil {
			return 0, fmt.Errorf("it is on a file system (%s) that the host has not mounted, and whose contents a user may decide; install it on one of the host's", theirs.fstype)
		}
	}
	return m.dev, s.host.judge(m)
}

// maxLayers bounds overlays of overlays.
const maxLayers = 4

// judge returns an error if a user may decide what the file system shows. Above
// are the overlays that have it as a layer.
func (t *mountTable) judge(m *mount, above ...*mount) error {
	if v := m.verdict.Load(); v != nil {
		return v.err
	}
	err := t.look(m, above)
	m.verdict.Store(&verdict{err})
	return err
}

func (t *mountTable) look(m *mount, above []*mount) error {
	switch root := t.over("/"); {
	case root != nil && root.dev == m.dev:
		// What PID 1 itself runs from, whoever made it: an image's overlay has
		// its layers where nobody sees them any more.
		return nil
	case slices.Contains(above, m):
		return errors.New("it is on an overlay that is a layer of itself, as far as the kernel tells")
	case m.fstype == "fuse" || m.fstype == "fuseblk" || strings.HasPrefix(m.fstype, "fuse.") || m.fstype == "virtiofs":
		return errors.New("it is on a FUSE file system, whose server may show the daemon other contents than the kernel runs")
	case strings.HasPrefix(m.source, "/dev/loop"):
		return backing(m.source)
	case m.fstype != "overlay":
		return nil
	case len(above) == maxLayers:
		return fmt.Errorf("it is on more than %d overlays, one over the other", maxLayers)
	}
	layers := layersOf(m.options)
	if len(layers) == 0 {
		return errors.New("it is on an overlay of which the kernel does not tell the layers")
	}
	for _, dir := range layers {
		if !strings.HasPrefix(dir, "/") {
			return fmt.Errorf("it is on an overlay with the layer %q, of which the kernel does not tell where it is", dir)
		}
		in := t.over(dir)
		if in == nil {
			return fmt.Errorf("it is on an overlay with the layer %s, which the host has not mounted", dir)
		}
		if err := t.judge(in, append(above[:len(above):len(above)], m)...); err != nil {
			return fmt.Errorf("overlay with the layer %s: %w", dir, err)
		}
		if err := closed(dir); err != nil {
			return fmt.Errorf("it is on an overlay with the layer %s, to which users can write: %w", dir, err)
		}
	}
	return nil
}

// backing returns an error unless a loop device shows a file that root alone
// can write to.
func backing(device string) error {
	b, err := os.ReadFile("/sys/block/" + strings.TrimPrefix(device, "/dev/") + "/loop/backing_file")
	if err != nil {
		return fmt.Errorf("it is on %s, of which it is not known which file it shows: %w", device, err)
	}
	if err := closed(strings.TrimSuffix(string(b), "\n")); err != nil {
		return fmt.Errorf("it is on %s, which shows a file that users can write to: %w", device, err)
	}
	return nil
}

// closed returns an error unless root alone can write to what is at the path. A
// directory of root's that is closed to the daemon is closed to users.
func closed(path string) error {
	if _, err := Resolve(path, OnlyRoot); err != nil && !errors.Is(err, unix.EACCES) {
		return err
	}
	return nil
}

// layersOf returns the directories that an overlay is made of, but for the one
// it works in.
func layersOf(options string) (layers []string) {
	for option := range strings.SplitSeq(options, ",") {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "lowerdir":
			for dir := range strings.SplitSeq(value, ":") {
				if dir != "" { // "::" is before layers of data alone
					layers = append(layers, dir)
				}
			}
		case "lowerdir+", "datadir+", "upperdir":
			layers = append(layers, value)
		}
	}
	return layers
}

// mountOf reads the mount with the ID from the table of a process's mount
// namespace, nil if it is not there.
func mountOf(proc int, id uint64) (found *mount, err error) {
	fd, err := unix.Openat(proc, "mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	prefix := strconv.FormatUint(id, 10) + " "
	err = ReadLines(fd, maxPeerTable, func(line []byte) (bool, error) {
		if !strings.HasPrefix(string(line), prefix) {
			return true, nil
		}
		found, err = parseMount(string(line))
		return false, err
	})
	return found, err
}
