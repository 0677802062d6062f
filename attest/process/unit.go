package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/systemd"
)

// A Manager says what the service manager holds of a system unit.
type Manager interface {
	Unit(ctx context.Context, name string) (*systemd.Unit, error)
}

// unitTimeout bounds how long a request waits for the manager.
const unitTimeout = time.Second

// unitFacts are what the manager holds of a process's unit. They are as the
// process was started: whatever was changed since is left out, so that they
// hold for the life of the process.
type unitFacts struct {
	invocation     string
	fragment       string
	fragmentSHA256 string
	execSHA256     []string
	script         string
	scriptSHA256   string
	gaps           []*Error

	files  map[string]fileID // that the facts rest on, by path
	roots  []string          // directories of the script and of its environment
	stack  uint64            // of the process, by which a later exec shows
	execed bool              // there was one since the script was established
	until  time.Time         // when to look again, if there are gaps
}

// gapLife is how long gaps are not looked into again: what is wrong may be
// mended, and the manager should not be asked at the pace of refused requests.
const gapLife = time.Second

// A startKey names a process for as long as the machine runs: two processes of
// one PID do not start in the same tick, in the same control group.
type startKey struct {
	pid    int
	start  uint64
	cgroup string
}

// unitCache holds what the manager has said about processes.
type unitCache struct {
	mu    sync.Mutex // guards facts
	facts map[startKey]*unitFacts
}

const maxUnitFacts = 4096

func (c *unitCache) get(k startKey) *unitFacts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.facts[k]
}

func (c *unitCache) put(k startKey, f *unitFacts) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.facts == nil || len(c.facts) >= maxUnitFacts {
		c.facts = make(map[startKey]*unitFacts)
	}
	c.facts[k] = f
}

// unit establishes what the manager says about the process's unit. What can't
// be established is among the gaps.
func (a *Attester) unit(ctx context.Context, p *Peer, dir procDir, at *Attested, f *facts) (*unitFacts, error) {
	name, _, ok := a.host.unit(at.Cgroup)
	if !ok || a.manager == nil || isLogin(name) {
		return nil, nil
	}
	key := startKey{p.pid, f.stat.start, at.Cgroup}
	known := a.units.get(key)
	if known != nil && known.stack == f.stat.stack && known.holds() {
		return known, nil
	}
	ctx, cancel := context.WithTimeout(ctx, unitTimeout)
	defer cancel()
	u, err := a.manager.Unit(ctx, name)
	if err != nil {
		return nil, err
	}
	e := unitEvidence{a: a, unit: u, peer: p, dir: dir, facts: f, started: startTime(f.stat.start)}
	established := e.establish(ctx)
	if known != nil && (known.execed || known.script != "" && known.stack != f.stat.stack) {
		established.forgetScript(p.pid) // what it runs now was its own choice
	}
	if err := p.Alive(); err != nil { // else its PID might not be the unit's main one
		return nil, err
	}
	if ctx.Err() == nil {
		a.units.put(key, established)
	}
	return established, nil
}

// scriptTrees returns the digests of the script's trees, if any entry asks for
// them. Every entry of a tree is looked at each time.
func (a *Attester) scriptTrees(ctx context.Context, f *facts) ([]string, error) {
	if f.unit == nil || !f.wants("script:tree_sha256") {
		return nil, nil
	}
	by := notBy(f.status.uids[:]...)
	var sums []string
	for _, root := range f.unit.roots {
		real, err := resolve(root, by)
		if err != nil {
			return nil, err
		}
		t, err := a.tree(ctx, real, by)
		if err != nil {
			return nil, err
		}
		if err := unchangedSince(fileID{ctime: t.changed}, startTime(f.stat.start)); err != nil {
			return nil, fmt.Errorf("tree %s %w", root, err)
		}
		sums = append(sums, t.sha256)
	}
	return sums, nil
}

// isLogin reports whether a unit is one that users start by logging in, of
// which there is nothing to say: unprivileged users cannot have the manager
// asked.
func isLogin(unit string) bool {
	return strings.HasPrefix(unit, "user@") || strings.HasPrefix(unit, "session-")
}

// forgetScript takes back what was said about the script of a process that has
// run another program since.
func (f *unitFacts) forgetScript(pid int) {
	f.execed = true
	if f.script == "" {
		return
	}
	f.script, f.scriptSHA256, f.roots = "", "", nil
	f.gaps = append(f.gaps, &Error{pid, "script", errors.New("the process has called exec since it was attested first: restart the unit")})
}

// holds reports whether every file that the facts rest on is as it was.
func (f *unitFacts) holds() bool {
	if len(f.gaps) > 0 && time.Now().After(f.until) {
		return false
	}
	for path, id := range f.files {
		var st unix.Statx_t
		if err := statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, &st); err != nil || identify(&st) != id {
			return false
		}
	}
	return true
}

// startDelay is how long after it has started a unit's first process systemd
// may note that the unit has.
const startDelay = 100 * time.Millisecond

// A unitEvidence is a unit while facts are drawn from it.
type unitEvidence struct {
	a       *Attester
	unit    *systemd.Unit
	peer    *Peer
	dir     procDir
	facts   *facts
	started time.Time // the process

	out *unitFacts
}

func (e *unitEvidence) establish(ctx context.Context) *unitFacts {
	e.out = &unitFacts{files: make(map[string]fileID), stack: e.facts.stat.stack, until: time.Now().Add(gapLife)}
	if main := e.unit.Service != nil && e.unit.Service.MainPID == e.peer.pid; !main && e.unit.Started.After(e.started.Add(startDelay)) {
		e.gap("unit", errors.New("the process is left over from an earlier start of its unit"))
		return e.out
	}
	e.out.invocation = e.unit.InvocationID
	if e.unit.NeedsReload {
		e.gap("unit file", errors.New("was changed since systemd has read it: run systemctl daemon-reload and restart the unit"))
		return e.out
	}
	if !e.definition(ctx) || e.unit.Service == nil {
		return e.out
	}
	if err := e.facts.status.confined(); err != nil {
		e.gap("script", err)
		return e.out
	}
	e.execFiles(ctx)
	if err := e.script(ctx); err != nil {
		e.gap("script", err)
	}
	return e.out
}

func (e *unitEvidence) gap(fact string, err error) {
	e.out.gaps = append(e.out.gaps, &Error{PID: e.peer.pid, Fact: fact, Err: err})
}

// definition takes the unit's files, and reports whether root wrote them all
// before the process was started.
func (e *unitEvidence) definition(ctx context.Context) bool {
	if e.unit.FragmentPath == "" {
		return false // a unit of the manager's own, such as a session
	}
	e.out.fragment = e.unit.FragmentPath
	sum, err := e.file(ctx, e.unit.FragmentPath, onlyRoot)
	if err != nil {
		e.gap("unit file", err)
		return false
	}
	e.out.fragmentSHA256 = sum
	others := e.unit.DropInPaths
	if e.unit.Service != nil {
		others = append(others[:len(others):len(others)], e.unit.Service.EnvironmentFiles...)
	}
	for _, path := range others {
		if strings.ContainsAny(path, "*?[") {
			e.gap("unit's configuration", fmt.Errorf("EnvironmentFile=%s may be any file; name it", path))
			return false
		}
		if _, err := e.file(ctx, path, onlyRoot); err != nil && !errors.Is(err, os.ErrNotExist) {
			e.gap("unit's configuration", err)
			return false
		}
	}
	return true
}

// file hashes a file that only the given writers can have written, and not
// since the process was started, and remembers that the facts rest on it.
func (e *unitEvidence) file(ctx context.Context, path string, by writer) (sum string, err error) {
	real, err := resolve(path, by)
	if err != nil {
		return "", err
	}
	id, sum, err := e.a.hashes.path(ctx, real)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if !strings.HasPrefix(real, transientUnits) {
		if err := unchangedSince(id, e.started); err != nil {
			return "", fmt.Errorf("%s %w", path, err)
		}
	}
	e.out.files[real] = id
	return sum, nil
}

// transientUnits is where systemd itself writes the files of transient units,
// right before it starts them.
const transientUnits = "/run/systemd/transient/"

// execFiles hashes each file that is named in ExecStart.
func (e *unitEvidence) execFiles(ctx context.Context) {
	for _, c := range e.unit.Service.ExecStart {
		for i, arg := range c.Args {
			if i == 0 {
				arg = c.Path
			}
			if !plainPath(arg) || strings.Contains(arg, "$") {
				continue
			}
			if info, err := os.Stat(arg); err != nil || !info.Mode().IsRegular() {
				continue // an argument that only looks like a path
			}
			sum, err := e.file(ctx, arg, notBy(e.facts.status.uids[:]...))
			if err != nil {
				e.gap("file in ExecStart", err)
				continue
			}
			e.out.execSHA256 = append(e.out.execSHA256, sum)
		}
	}
}

// script establishes what the interpreter runs, for the unit's main process
// only: others may be whatever that one has started.
func (e *unitEvidence) script(ctx context.Context) error {
	s := e.unit.Service
	if s.MainPID != e.peer.pid {
		return nil
	}
	switch {
	case s.Type != "simple" && s.Type != "exec" && s.Type != "notify" && s.Type != "notify-reload" && s.Type != "dbus" && s.Type != "idle" && s.Type != "oneshot":
		return fmt.Errorf("a service of type %s may choose its main process; use another type", s.Type)
	case s.NotifyAccess != "none" && s.NotifyAccess != "main":
		return fmt.Errorf("with NotifyAccess=%s every process of the unit may choose its main process; use main", s.NotifyAccess)
	case s.RootDirectory != "" || s.RootImage != "":
		return errors.New("the unit has a root directory of its own")
	case s.PAMName != "":
		return errors.New("with PAMName= the user may set variables that change what an interpreter runs")
	case len(s.ExecStart) != 1:
		return fmt.Errorf("the unit has %d commands in ExecStart", len(s.ExecStart))
	}
	script, interpreter, err := e.findScript(s)
	if err != nil || script == "" {
		return err
	}
	sum, err := e.file(ctx, script, notBy(e.facts.status.uids[:]...))
	if err != nil {
		return err
	}
	if err := e.sameInside(script); err != nil {
		return err
	}
	e.out.script, e.out.scriptSHA256 = script, sum
	e.out.roots = []string{filepath.Dir(script)}
	venv := filepath.Dir(filepath.Dir(interpreter))
	if _, err := os.Lstat(filepath.Join(venv, "pyvenv.cfg")); err == nil {
		e.out.roots = append(e.out.roots, venv)
	}
	return nil
}

// findScript returns the script in ExecStart and the path of the interpreter
// that runs it, or "" where the program is no interpreter.
func (e *unitEvidence) findScript(s *systemd.Service) (script, interpreter string, err error) {
	c := s.ExecStart[0]
	if !e.unit.Loaded.Before(e.started) {
		if err := e.startedWith(c.Args); err != nil {
			return "", "", err
		}
	}
	if len(c.Args) == 0 || !plainPath(c.Path) || strings.Contains(c.Path, "$") {
		return "", "", errors.New("ExecStart names no program")
	}
	head, err := readHead(c.Path)
	if err != nil {
		return "", "", err
	}
	if program, arg, ok := shebang(head); ok {
		interpreter, err := interpreterOf(program, arg)
		if err != nil {
			return "", "", err
		}
		return c.Path, interpreter, e.runs(interpreter)
	}
	if err := e.runs(c.Path); err != nil {
		return "", "", err
	}
	if _, ok := optionsOf(c.Path); !ok {
		return "", "", nil
	}
	script, err = scriptIn(c.Path, c.Args)
	if err != nil {
		return "", "", err
	}
	if !filepath.IsAbs(script) {
		if !filepath.IsAbs(s.WorkingDirectory) {
			return "", "", fmt.Errorf("script %s is relative to a directory that the unit does not set; use an absolute path", script)
		}
		script = filepath.Join(s.WorkingDirectory, script)
	}
	if !plainPath(script) {
		return "", "", fmt.Errorf("script %q has a path with dots as parts; write it without them", script)
	}
	return script, c.Path, nil
}

// startedWith returns an error unless the process shows the arguments as its
// own. systemd has read its units anew since the process was started, so that
// ExecStart may be a later one. A process can show any arguments, but one that
// was not told to does not know which.
func (e *unitEvidence) startedWith(args []string) error {
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)
	b, err := e.dir.read("cmdline", buf)
	if err != nil {
		return err
	}
	if string(b) != strings.Join(args, "\x00")+"\x00" {
		return errors.New("systemd has read its units anew since the process was started, and the process does not show the arguments of ExecStart: restart the unit")
	}
	return nil
}

// runs returns an error unless the process runs the program at the path.
func (e *unitEvidence) runs(path string) error {
	var st unix.Statx_t
	if err := statx(unix.AT_FDCWD, path, 0, &st); err != nil {
		return fmt.Errorf("program %s: %w", path, err)
	}
	if identify(&st) != e.facts.program {
		return fmt.Errorf("the process does not run %s, which its unit starts", path)
	}
	return nil
}

// sameInside returns an error unless the process, in its mount namespace, finds
// the same file at the path.
func (e *unitEvidence) sameInside(path string) error {
	root, err := unix.Openat(int(e.dir), "root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("root directory of the process: %w", err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return fmt.Errorf("%s as the process sees it: %w", path, err)
	}
	defer unix.Close(fd)
	var inside, outside unix.Statx_t
	if err := statx(fd, "", unix.AT_EMPTY_PATH, &inside); err != nil {
		return err
	}
	if err := statx(unix.AT_FDCWD, path, 0, &outside); err != nil {
		return err
	}
	if identify(&inside) != identify(&outside) {
		return fmt.Errorf("the process sees another file at %s than the daemon", path)
	}
	return nil
}

func readHead(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("program %s: %w", path, err)
	}
	defer unix.Close(fd)
	head := make([]byte, maxShebang)
	n, err := unix.Read(fd, head)
	if err != nil {
		return nil, fmt.Errorf("program %s: %w", path, err)
	}
	return head[:n], nil
}

// interpreterOf returns the program that a script's first line leads to, also
// through env(1) and the path that systemd gives to services.
func interpreterOf(program, arg string) (string, error) {
	if filepath.Base(program) != "env" {
		if _, ok := optionsOf(program); !ok {
			return "", fmt.Errorf("%s is no interpreter that is known", program)
		}
		if arg != "" {
			if _, err := scriptIn(program, []string{program, arg, "script"}); err != nil {
				return "", err
			}
		}
		return program, nil
	}
	if _, ok := optionsOf(arg); !ok || strings.ContainsAny(arg, " \t=/") {
		return "", fmt.Errorf("env %q starts no interpreter that is known", arg)
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		path := filepath.Join(dir, arg)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("env finds no %s on the path that systemd sets", arg)
}
