package scan

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vouchd/vouchd/inventory"
)

const (
	maxProcesses = 100_000
	maxEnviron   = 4 << 20
	maxAncestors = 64
)

// A process is one that was there.
type process struct {
	dir      string
	parent   string
	program  string
	unit     string
	uid      uint32
	began    time.Time
	names    map[string]bool // of its variables
	findings []inventory.Finding
}

// processes reads the environments that may be read: all for root, else one's own. A
// process that ends meanwhile is not there.
func (r *run) processes(proc string) {
	root, err := os.OpenRoot(proc)
	if err != nil {
		r.unread(proc, err)
		return
	}
	defer root.Close()
	dir, err := root.Open(".")
	if err != nil {
		r.unread(proc, err)
		return
	}
	defer dir.Close()
	all := make(map[string]*process)
	for r.ctx.Err() == nil && len(all) < maxProcesses {
		names, err := dir.Readdirnames(atOnce)
		for _, name := range names {
			if _, number := strconv.Atoi(name); number == nil && name != strconv.Itoa(os.Getpid()) {
				if p := r.process(root, proc, name); p != nil {
					all[name] = p
				}
			}
		}
		if err != nil {
			break
		}
	}
	r.result.Counts.Processes = int64(len(all))
	r.takeProcesses(all)
}

// process reads one.
func (r *run) process(root *os.Root, proc, pid string) *process {
	data, err := readProc(root, filepath.Join(pid, "environ"), maxEnviron)
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return nil // another user's
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
			r.unread(filepath.Join(proc, pid, "environ"), err)
		}
		return nil
	}
	defer clear(data)
	p := &process{dir: filepath.Join(proc, pid), names: make(map[string]bool)}
	if info, err := root.Stat(pid); err == nil {
		p.began = info.ModTime().UTC()
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			p.uid = st.Uid
		}
	}
	stat, _ := readProc(root, filepath.Join(pid, "stat"), 4096) // has the name in parentheses, which may have such itself
	if i, j := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')'); i >= 0 && j > i {
		p.program = string(stat[i+1 : j])
		if rest := strings.Fields(string(stat[j+1:])); len(rest) > 1 {
			p.parent = rest[1]
		}
	}
	cgroup, _ := readProc(root, filepath.Join(pid, "cgroup"), 64<<10)
	p.unit = unitOf(string(cgroup))
	for pair := range bytes.SplitSeq(data, []byte{0}) {
		if name, _, ok := bytes.Cut(pair, []byte("=")); ok {
			p.names[string(name)] = true
		}
	}
	if p.findings, err = inventory.ReadFile(inventory.Process, filepath.Join(p.dir, "environ"), data); err != nil {
		r.unread(p.dir, err)
	}
	return p
}

func readProc(root *os.Root, name string, most int64) ([]byte, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

// unitOf returns the service that a process is of, from its cgroup.
func unitOf(cgroup string) string {
	for part := range strings.SplitSeq(strings.TrimSpace(cgroup), "/") {
		if strings.HasSuffix(part, ".service") && !strings.HasPrefix(part, "user@") {
			return part
		}
	}
	return ""
}

// takeProcesses adds what was found. Processes have their environment from one another,
// so that a secret counts once for each user.
func (r *run) takeProcesses(all map[string]*process) {
	type same struct {
		uid         uint32
		item, print string
	}
	at := make(map[same]int)
	for _, p := range all {
		for _, f := range p.findings {
			f.Owner = r.people.user(p.uid)
			f.Access, f.Readers = inventory.Owner, []string{"user " + f.Owner}
			f.Modified, f.Program, f.Processes = p.began, inventory.Printable(p.program), 1
			if p.unit != "" {
				f.Replace, f.Hint = "vouch migrate unit "+inventory.ShellQuote(p.unit), ""
			}
			if f.Leased = f.Leased || fromVouch(all, p, f.Item); f.Leased {
				f.Replace, f.Hint, f.What, f.Broad = "", "", "", ""
			}
			key := same{p.uid, f.Item, r.Key.print(f.Value)}
			if i, ok := at[key]; ok {
				r.oneMore(&r.result.Findings[i], &f)
				f.Value.Wipe()
				continue
			}
			n := len(r.result.Findings)
			r.take([]inventory.Finding{f}, nil)
			if len(r.result.Findings) > n {
				at[key] = n
			}
		}
	}
}

// oneMore counts another process. The oldest stands for all.
func (r *run) oneMore(f, other *inventory.Finding) {
	f.Processes++
	if other.Modified.Before(f.Modified) {
		f.Path, f.Program, f.Modified = inventory.Printable(other.Path), other.Program, other.Modified
		f.Replace, f.Hint = other.Replace, other.Hint
	}
	f.Leased = f.Leased && other.Leased
	f.State = f.StateOf()
}

// fromVouch reports whether vouch exec has put a variable into the environment of a
// process: one above it is vouch, which lacks the variable itself.
func fromVouch(all map[string]*process, p *process, variable string) bool {
	for range maxAncestors {
		above := all[p.parent]
		if above == nil {
			return false
		}
		if above.program == "vouch" {
			return !above.names[variable]
		}
		p = above
	}
	return false
}
