package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vouchd/vouchd/attest/process/file"
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
	main           bool // the process is the one that systemd started as the main one
	invocation     string
	fragment       string
	fragmentSHA256 string
	execSHA256     []string
	script         string
	scriptSHA256   string
	gaps           []*Error

	files  map[string]file.ID // that the facts rest on, by path
	roots  []string           // directories of the script and of its environment
	image  image              // of the process, by which a later exec shows
	execed bool               // there was one since the script was established
	until  time.Time          // when to look again, if there are gaps
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
	key := startKey{p.pid, f.start, at.Cgroup}
	known := a.units.get(key)
	if known != nil && known.image == f.image && known.holds() {
		return known, nil
	}
	ctx, cancel := context.WithTimeout(ctx, unitTimeout)
	defer cancel()
	u, err := a.manager.Unit(ctx, name)
	if err != nil {
		return nil, err
	}
	e := unitEvidence{a: a, unit: u, peer: p, dir: dir, facts: f, started: startTime(f.start)}
	established := e.establish(ctx)
	if known != nil && (known.execed || known.script != "" && known.image != f.image) {
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
	if f.unit == nil || !f.wants.Has(ofTree) {
		return nil, nil
	}
	by := file.NotBy(f.status.uids[:]...)
	var sums []string
	for _, root := range f.unit.roots {
		real, err := file.Resolve(root, by)
		if err != nil {
			return nil, err
		}
		if err := a.systems.OnHost(real); err != nil {
			return nil, err
		}
		t, err := a.hasher.Tree(ctx, a.person(f.status.uids[0]), real, by)
		if err != nil {
			return nil, err
		}
		if err := t.UnchangedSince(startTime(f.start)); err != nil {
			return nil, fmt.Errorf("tree %s %w", root, err)
		}
		sums = append(sums, t.SHA256)
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
		if now, err := file.AtPath(path); err != nil || now != id {
			return false
		}
	}
	return true
}

// harmless are the capabilities (capabilities(7)) that do not help a process
// to change another user's files, or the clock that changes are judged by:
// KILL, NET_*, IPC_LOCK, SYS_NICE, WAKE_ALARM and BLOCK_SUSPEND.
const harmless = 1<<5 | 1<<10 | 1<<11 | 1<<12 | 1<<13 | 1<<14 | 1<<23 | 1<<35 | 1<<36

// confined returns an error if the process may write to files whoever they
// belong to.
func (s status) confined() error {
	if slices.Contains(s.uids[:], 0) {
		return errors.New("the process runs as root, or may become root, and can rewrite every file; give it a user of its own")
	}
	if more := s.permitted &^ harmless; more != 0 {
		return fmt.Errorf("the process has capabilities (%#x) by which it may rewrite files; take them away", more)
	}
	return nil
}

// startTime returns when a process that started at the given ticks since boot
// did, by the clock of today.
func startTime(start uint64) time.Time {
	return time.Now().Add(-sinceBoot()).Add(time.Duration(start) * 10 * time.Millisecond)
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
	e.out = &unitFacts{files: make(map[string]file.ID), image: e.facts.image, until: time.Now().Add(gapLife)}
	if main := e.unit.Service != nil && e.unit.Service.MainPID == e.peer.pid; !main && e.unit.Started.After(e.started.Add(startDelay)) {
		e.gap("unit", errors.New("the process is left over from an earlier start of its unit"))
		return e.out
	}
	e.out.invocation = e.unit.InvocationID
	e.mainProcess()
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

// mainProcess establishes whether systemd itself started the process as the main
// one of its unit, of whose control group it is. A unit's processes can name
// another as the main one where the unit lets them; systemd notes when it took
// that one for it, and then that is no start of its own.
func (e *unitEvidence) mainProcess() {
	s := e.unit.Service
	if s == nil || s.MainPID != e.peer.pid {
		return
	}
	late := s.MainStarted.Sub(e.started)
	switch {
	case s.Type == "forking":
		e.gap("main process", errors.New("a service of type forking chooses its main process; use another type"))
	case s.NotifyAccess != "none" && s.NotifyAccess != "main":
		e.gap("main process", fmt.Errorf("with NotifyAccess=%s every process of the unit may choose its main process; use main", s.NotifyAccess))
	case e.facts.status.parent != 1:
		e.gap("main process", errors.New("systemd has not started it: it is a child of another process"))
	case late < -startDelay || late > startLate:
		e.gap("main process", fmt.Errorf("systemd has noted the start of the main process at %s, and it started at %s: the unit has named another", s.MainStarted.Format(time.RFC3339Nano), e.started.Format(time.RFC3339Nano)))
	default:
		e.out.main = true
	}
}

// startLate is how long after a process has started systemd may note that it
// has, on a machine that is busy.
const startLate = time.Second

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
	sum, err := e.file(ctx, e.unit.FragmentPath, file.OnlyRoot)
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
		if _, err := e.file(ctx, path, file.OnlyRoot); err != nil && !errors.Is(err, os.ErrNotExist) {
			e.gap("unit's configuration", err)
			return false
		}
	}
	return true
}

// file hashes a file that only the given writers can have written, and not
// since the process was started, and remembers that the facts rest on it.
func (e *unitEvidence) file(ctx context.Context, path string, by file.Writer) (sum string, err error) {
	real, err := file.Resolve(path, by)
	if err != nil {
		return "", err
	}
	if err := e.a.systems.OnHost(real); err != nil {
		return "", err
	}
	id, sum, err := e.a.hasher.Path(ctx, e.a.person(e.facts.status.uids[0]), real)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if !strings.HasPrefix(real, transientUnits) {
		if err := id.UnchangedSince(e.started); err != nil {
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
			sum, err := e.file(ctx, arg, file.NotBy(e.facts.status.uids[:]...))
			if err != nil {
				e.gap("file in ExecStart", err)
				continue
			}
			e.out.execSHA256 = append(e.out.execSHA256, sum)
		}
	}
}
