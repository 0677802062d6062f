package process

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/vouchd/vouchd/attest"
)

// Options bound the work that one attestation may cause. Zero values mean the
// defaults.
type Options struct {
	MaxFileSize int64         // of a file that is hashed, in bytes; default 1 GiB
	HashTimeout time.Duration // for hashing one file; default 10 s
	CacheSize   int           // digests of files to keep; default 4096

	// Manager answers for units; nil where systemd is not PID 1. Without it
	// there are no selectors but those that follow from the control group.
	Manager Manager
	// Wants says whether any entry wants a selector of a type (ns), or of a type
	// and key (script:tree_sha256). What takes a while to find out and nobody
	// wants, Attest leaves out; nil means that everything is wanted.
	Wants func(kind string) bool
}

// An Attester attests peers. It keeps the digests of files that it has hashed;
// its methods are safe for concurrent use.
type Attester struct {
	host     host
	modules  modules
	hashes   *hashes
	names    *names
	measured *measurements // nil where the kernel keeps no list
	manager  Manager       // nil where there is none
	wants    func(kind string) bool

	turns     turns
	units     unitCache
	treeCache treeCache
}

// NewAttester returns an Attester for the machine it runs on.
func NewAttester(o Options) *Attester {
	wants := o.Wants
	if wants == nil {
		wants = everything
	}
	return &Attester{
		host:    thisHost(),
		modules: theseModules(),
		hashes: newHashes(
			cmp.Or(o.MaxFileSize, 1<<30),
			cmp.Or(o.HashTimeout, 10*time.Second),
			cmp.Or(o.CacheSize, 4096),
		),
		names:    newNames(),
		measured: theseMeasurements(),
		manager:  o.Manager,
		wants:    wants,
	}
}

func everything(string) bool { return true }

// An Attested is what a process was at one moment.
type Attested struct {
	PID           int
	StartTime     uint64 // ticks since boot, /proc/PID/stat field 22
	UID, GID      uint32 // effective
	Path          string // of the program as the kernel reports it: untrusted text
	SHA256        string // of the running program's file, hexadecimal; empty if in Gaps
	Device, Inode uint64 // of that file
	Cgroup        string // control group as the kernel reports it: untrusted text
	Unit          string // system unit, empty where there is none
	Selectors     attest.Selectors

	// Files, and everything below Trees, are what the selectors rest on: where
	// one of them changes, attest anew. See [Watcher].
	Files, Trees []string

	// Gaps are the facts that could not be established though the process
	// lives. There is no selector for them, so that no entry that wants one
	// matches.
	Gaps []*Error
}

// An Error reports which fact about which process could not be established.
type Error struct {
	PID  int
	Fact string // "program", "control group"
	Err  error
}

func (e *Error) Error() string {
	return fmt.Sprintf("attesting %s of process %d: %v", e.Fact, e.PID, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// ErrChanged means that the process became another program or another user
// while it was attested. Asking again may succeed.
var ErrChanged = errors.New("it changed during attestation, by exec or by setting its user or groups")

// Attest reads what the process is now. It returns [ErrPeerGone] if the
// process exited before everything was read, and otherwise an [*Error] that
// names the process and the fact that could not be established; it wraps
// [ErrChanged] if the process changed meanwhile.
//
// Attestations for one user wait for each other beyond a small number at a
// time: what they touch belongs to that user, such as a file system that does
// not answer, and must not keep others waiting.
func (a *Attester) Attest(ctx context.Context, p *Peer) (*Attested, error) {
	if err := a.turns.take(ctx, p.uid); err != nil {
		return nil, &Error{PID: p.pid, Fact: "process, after the others of its user,", Err: err}
	}
	defer a.turns.give(p.uid)
	return a.attest(ctx, p, a.wants)
}

func (a *Attester) attest(ctx context.Context, p *Peer, wants func(kind string) bool) (*Attested, error) {
	dir, err := openDir(p.pid)
	if err != nil {
		return nil, p.explain("process directory", err)
	}
	defer dir.close()
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)

	before, err := observe(p, dir, buf)
	if err != nil {
		return nil, err
	}
	if before.status.tracer != 0 {
		return nil, p.explain("tracer", fmt.Errorf("process %d traces it, and so speaks for it; detach the debugger", before.status.tracer))
	}
	if err := a.host.owns(dir); err != nil {
		return nil, p.explain("PID namespace", err)
	}
	at := &Attested{
		PID:       p.pid,
		StartTime: before.stat.start,
		UID:       before.status.uid,
		GID:       before.status.gid,
		Device:    before.program.dev,
		Inode:     before.program.ino,
	}
	f := facts{observation: before, wants: wants}
	if err := a.read(ctx, p, dir, buf, at, &f); err != nil {
		return nil, err
	}

	after, err := observe(p, dir, buf)
	if err != nil {
		return nil, err
	}
	if !before.equal(after) {
		return nil, p.explain("program", ErrChanged)
	}
	if err := p.Alive(); err != nil {
		return nil, err
	}
	// Everything read above was about p. What follows asks the host.
	at.Selectors = a.selectors(ctx, at, &f)
	at.restOn(&f)
	return at, nil
}

// facts are what selectors are made of, beside what Attested holds.
type facts struct {
	observation
	wants   func(kind string) bool
	sandbox sandbox
	verity  string // algorithm:digest of the program, "" for none
	parent  parent
	unit    *unitFacts // nil where there are none
	trees   []string   // digests of the script's trees
}

// read reads what has not been observed yet.
func (a *Attester) read(ctx context.Context, p *Peer, dir procDir, buf *buffer, at *Attested, f *facts) (err error) {
	if at.Path, err = dir.programPath(); err != nil {
		return p.explain("program", err)
	}
	if at.SHA256, err = a.hashes.sum(ctx, f.program, dir.openProgram); err != nil {
		if err := at.gap(ctx, p, "program's digest", err); err != nil {
			return err
		}
	}
	if f.program.verity {
		if f.verity, err = dir.programVerity(f.program); err != nil {
			if err := at.gap(ctx, p, "program's fs-verity digest", err); err != nil {
				return err
			}
		}
	}
	if at.Cgroup, err = dir.cgroup(a.host.hierarchy, buf); err != nil {
		return p.explain("control group", err)
	}
	if f.wants("ns") || f.wants("apparmor") || f.wants("selinux") {
		if f.sandbox, err = dir.sandbox(a.modules, buf); err != nil {
			return p.explain("sandbox", err)
		}
		f.sandbox.known = true
	}
	if f.wants("parent") && f.status.parent > 1 { // PID 1 is everybody's
		if f.parent, err = a.parent(ctx, f.status.parent, buf); err != nil {
			if err := at.gap(ctx, p, "parent", err); err != nil {
				return err
			}
		}
	}
	if slices.ContainsFunc(managerKinds, f.wants) {
		if f.unit, err = a.unit(ctx, p, dir, at, f); err != nil {
			if err := at.gap(ctx, p, "unit", err); err != nil {
				return err
			}
		}
	}
	if f.unit != nil {
		at.Gaps = append(at.Gaps, f.unit.gaps...)
	}
	if f.trees, err = a.scriptTrees(ctx, f); err != nil {
		if err := at.gap(ctx, p, "script's tree", err); err != nil {
			return err
		}
	}
	return nil
}

// managerKinds are those that systemd is asked for; unit and slice follow from
// the control group.
var managerKinds = []string{"script", "systemd:exec_sha256", "systemd:fragment_path", "systemd:fragment_sha256", "systemd:invocation_id"}

// restOn notes the files that the selectors rest on.
func (at *Attested) restOn(f *facts) {
	if at.Selectors.Has(attest.Selector{Type: "unix", Value: "path:" + at.Path}) {
		at.Files = append(at.Files, at.Path)
	}
	if f.unit != nil {
		at.Files = append(at.Files, slices.Sorted(maps.Keys(f.unit.files))...)
		if len(f.trees) > 0 {
			at.Trees = f.unit.roots
		}
	}
}

// AttestPID attests the process that has the PID now, and leaves nothing out.
func (a *Attester) AttestPID(ctx context.Context, pid int) (*Attested, error) {
	p, err := Pin(pid)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	return a.attest(ctx, p, everything)
}

// gap notes a fact that could not be established. It returns an error if the
// reason is that the process or the request is at its end.
func (at *Attested) gap(ctx context.Context, p *Peer, fact string, err error) error {
	if ctx.Err() != nil {
		return &Error{PID: p.pid, Fact: fact, Err: context.Cause(ctx)}
	}
	if alive := p.Alive(); alive != nil {
		return alive
	}
	at.Gaps = append(at.Gaps, &Error{PID: p.pid, Fact: fact, Err: err})
	return nil
}

// An observation is everything that an exec or a change of user changes.
type observation struct {
	stat    stat
	status  status
	program fileID
}

func (o observation) equal(p observation) bool {
	return o.stat == p.stat && o.status.equal(p.status) && o.program == p.program
}

func observe(p *Peer, dir procDir, buf *buffer) (o observation, err error) {
	if o.stat, err = dir.stat(buf); err != nil {
		return o, p.explain("start time", err)
	}
	if o.status, err = dir.status(buf); err != nil {
		return o, p.explain("user", err)
	}
	if o.program, err = dir.program(); err != nil {
		return o, p.explain("program", err)
	}
	return o, nil
}
