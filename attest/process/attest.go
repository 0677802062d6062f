package process

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/vouchd/vouchd/attest"
	"github.com/vouchd/vouchd/attest/process/file"
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
	// Wants returns the kinds of selectors that are wanted by the entries which a
	// process may still match whose facts up to the stage are these. It is asked
	// stage by stage, so that a process which no entry's anchors fit costs no
	// question to systemd and no reading of files; nil means that everything is
	// wanted.
	Wants func(have attest.Selectors, upTo attest.Stage) attest.KindSet
	// Person returns the user that a user ID counts for where work is shared out:
	// the owner, if the ID is a subordinate one. Nil means the user itself.
	Person func(uid uint32) uint32
}

// An Attester attests peers. It keeps the digests of files that it has hashed;
// its methods are safe for concurrent use.
type Attester struct {
	host     host
	modules  modules
	hasher   *file.Hasher
	names    *names
	measured *measurements // nil where the kernel keeps no list
	manager  Manager       // nil where there is none
	systems  *file.Systems
	wants    func(have attest.Selectors, upTo attest.Stage) attest.KindSet
	person   func(uid uint32) uint32

	turns  turns
	units  unitCache
	starts starts
}

// NewAttester returns an Attester for the machine it runs on.
func NewAttester(o Options) *Attester {
	wants := o.Wants
	if wants == nil {
		wants = everything
	}
	person := o.Person
	if person == nil {
		person = func(uid uint32) uint32 { return uid }
	}
	return &Attester{
		host:     thisHost(),
		modules:  theseModules(),
		hasher:   file.NewHasher(o.MaxFileSize, o.HashTimeout, o.CacheSize),
		names:    newNames(),
		measured: theseMeasurements(),
		manager:  o.Manager,
		systems:  file.NewSystems(),
		wants:    wants,
		person:   person,
	}
}

// Stats returns numbers of now about the files that attestations have had hashed.
func (a *Attester) Stats() file.Stats { return a.hasher.Stats() }

func everything(attest.Selectors, attest.Stage) attest.KindSet { return ^attest.KindSet(0) }

// An Attested is what a process was at one moment.
type Attested struct {
	PID           int
	StartTime     uint64 // ticks since boot, /proc/PID/stat field 22
	UID, GID      uint32 // effective
	Path          string // of the program as the kernel reports it: untrusted text
	SHA256        string // of the running program's file, hexadecimal; empty if in Gaps, and where no entry's anchors fit
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

	seen observation // for Unchanged
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
// while it was attested, or since. Asking again may succeed.
var ErrChanged = errors.New("it changed during attestation, by exec, by setting its user or groups, or by a move to another control group or namespace")

// Attest reads what the process is now. It returns [ErrPeerGone] if the
// process exited before everything was read, and otherwise an [*Error] that
// names the process and the fact that could not be established; it wraps
// [ErrChanged] if the process changed meanwhile.
//
// Attestations for one user wait for each other beyond a small number at a
// time: what they touch belongs to that user, such as a file system that does
// not answer, and must not keep others waiting.
func (a *Attester) Attest(ctx context.Context, p *Peer) (*Attested, error) {
	person := a.person(p.uid)
	if err := a.turns.take(ctx, person); err != nil {
		return nil, &Error{PID: p.pid, Fact: "process, after the others of its user,", Err: err}
	}
	defer a.turns.give(person)
	return a.attest(ctx, p, a.wants)
}

func (a *Attester) attest(ctx context.Context, p *Peer, wants func(attest.Selectors, attest.Stage) attest.KindSet) (*Attested, error) {
	dir, err := openDir(p.pid)
	if err != nil {
		return nil, p.explain("process directory", err)
	}
	defer dir.close()
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)

	start, err := p.startOf(dir, buf)
	if err != nil {
		return nil, p.explain("start time", err)
	}
	before, err := a.observe(p, dir, buf, nil)
	if err != nil {
		return nil, err
	}
	if before.status.tracer != 0 {
		return nil, p.explain("tracer", fmt.Errorf("process %d traces it, and so speaks for it; detach the debugger", before.status.tracer))
	}
	pidNS, err := namespace(int(dir), "ns/pid")
	if err == nil {
		err = a.host.owns(dir, pidNS)
	}
	if err != nil {
		return nil, p.explain("PID namespace", err)
	}
	at := &Attested{
		PID:       p.pid,
		StartTime: start,
		UID:       before.status.uid,
		GID:       before.status.gid,
		Device:    before.program.Dev,
		Inode:     before.program.Ino,
		Cgroup:    before.cgroup,
		seen:      before,
	}
	if at.Path, err = dir.programPath(); err != nil {
		return nil, p.explain("program", err)
	}
	s := &statement{make(attest.Selectors, 0, 32+2*len(before.status.groups))}
	f := &facts{observation: before, start: start, pidNS: pidNS}
	if err := a.stages(ctx, p, dir, buf, at, f, s, wants); err != nil {
		return nil, err
	}

	after := before // namespaces and control group are looked at by Unchanged
	if err := a.observeProgram(p, dir, buf, &after); err != nil {
		return nil, err
	}
	if !before.equal(after) || before.status.parent != after.status.parent {
		return nil, p.explain("program", ErrChanged)
	}
	if err := p.Alive(); err != nil {
		return nil, err
	}
	// Everything read above was about p.
	at.Selectors = s.selectors
	at.restOn(f)
	return at, nil
}

// stages finds out one stage of facts after the other, each only for a process
// that may match an entry by the facts before.
func (a *Attester) stages(ctx context.Context, p *Peer, dir procDir, buf *buffer, at *Attested, f *facts, s *statement,
	wants func(attest.Selectors, attest.Stage) attest.KindSet) error {
	a.addGroup(s, at, f)
	if err := a.addUser(ctx, s, p, dir, at, f); err != nil {
		return err
	}
	if f.status.noNewPrivs {
		s.add("nnp", "", "true")
	}
	if f.status.seccomp {
		s.add("seccomp", "", "filter")
	}
	if f.wants = wants(s.selectors, attest.Seen); f.wants == 0 {
		return nil
	}
	if err := a.ask(ctx, p, dir, buf, at, f); err != nil {
		return err
	}
	a.addSandbox(s, f)
	if f.unit != nil {
		addUnit(s, f.unit)
	}
	if f.wants = wants(s.selectors, attest.Asked); f.wants == 0 {
		return nil
	}
	if err := a.read(ctx, p, dir, buf, at, f); err != nil {
		return err
	}
	a.addProgram(s, at, f)
	s.add("parent", "sha256:", f.parent.sha256)
	s.add("parent", "systemd:id:", f.parent.unit)
	for _, sum := range f.trees {
		s.add("script", "tree_sha256:", sum)
	}
	return nil
}

// facts are what selectors are made of, beside what Attested holds.
type facts struct {
	observation
	start   uint64 // of the process, in ticks since boot
	wants   attest.KindSet
	pidNS   nsID
	users   userNS
	sandbox sandbox
	onHost  bool   // the program is on a file system of the host's
	verity  string // algorithm:digest of the program, "" for none
	parent  parent
	unit    *unitFacts // nil where there are none
	trees   []string   // digests of the script's trees
}

var (
	ofSandbox = attest.KindsOf("ns:", "apparmor:", "selinux:")
	ofParent  = attest.KindsOf("parent:")
	ofTree    = attest.KindsOf("script:tree_sha256:")
	ofIMA     = attest.KindsOf("ima:")
	ofPath    = attest.KindsOf("unix:path:")
	// Unit and slice follow from the control group.
	ofManager = attest.KindsOf("script:", "systemd:exec_sha256:", "systemd:fragment_path:", "systemd:fragment_sha256:", "systemd:invocation_id:", "systemd:main_process:")
)

// ask finds out what others than the process's files know.
func (a *Attester) ask(ctx context.Context, p *Peer, dir procDir, buf *buffer, at *Attested, f *facts) (err error) {
	if f.wants.Has(ofSandbox) {
		if f.sandbox, err = dir.sandbox(a.modules, f, buf); err != nil {
			return p.explain("sandbox", err)
		}
		f.sandbox.known = true
	}
	if f.wants.Has(ofManager) {
		if f.unit, err = a.unit(ctx, p, dir, at, f); err != nil {
			if err := at.gap(ctx, p, "unit", err); err != nil {
				return err
			}
		}
	}
	if f.unit != nil {
		at.Gaps = append(at.Gaps, f.unit.gaps...)
	}
	return nil
}

// read finds out what files hold.
func (a *Attester) read(ctx context.Context, p *Peer, dir procDir, buf *buffer, at *Attested, f *facts) error {
	if err := a.readProgram(ctx, p, dir, buf, at, f); err != nil {
		if err := at.gap(ctx, p, "program's digest", err); err != nil {
			return err
		}
	}
	var err error
	if f.wants.Has(ofParent) && f.status.parent > 1 { // PID 1 is everybody's
		if f.parent, err = a.parent(ctx, f.status.parent, buf); err != nil {
			if err := at.gap(ctx, p, "parent", err); err != nil {
				return err
			}
		}
	}
	if f.trees, err = a.scriptTrees(ctx, f); err != nil {
		if err := at.gap(ctx, p, "script's tree", err); err != nil {
			return err
		}
	}
	return nil
}

// readProgram finds out about the program that the process runs. The caller
// observes the process once more.
func (a *Attester) readProgram(ctx context.Context, p *Peer, dir procDir, buf *buffer, at *Attested, f *facts) error {
	running, err := a.program(ctx, dir, buf, f.observation, f.users, at.Path)
	f.onHost, f.verity, at.SHA256 = running.onHost, running.verity, running.sha256
	if err != nil {
		return err
	}
	if running.verityErr != nil {
		return at.gap(ctx, p, "program's fs-verity digest", running.verityErr)
	}
	return nil
}

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

// An observation is everything that an exec, a change of user or a move changes.
type observation struct {
	image         image
	status        status
	program       file.ID
	userNS, mntNS nsID // that of PIDs is for life
	cgroup        string
}

// equal reports whether both are of one program, under the same credentials, at
// the same place. The parent may be another: it may have exited.
func (o observation) equal(p observation) bool {
	return o.image == p.image && o.status.equal(p.status) && o.program == p.program &&
		o.userNS == p.userNS && o.mntNS == p.mntNS && o.cgroup == p.cgroup
}

// observe looks at a process, the first time or, since it was seen, again.
func (a *Attester) observe(p *Peer, dir procDir, buf *buffer, since *observation) (o observation, err error) {
	if err := a.observeProgram(p, dir, buf, &o); err != nil {
		return o, err
	}
	if o.userNS, err = namespace(int(dir), "ns/user"); err != nil {
		return o, p.explain("namespaces", err)
	}
	// Without CAP_SYS_ADMIN it cannot have left its mount namespace. To gain that
	// takes an exec, or another user namespace.
	if since != nil && o.status.permitted&sysAdmin == 0 {
		o.mntNS = since.mntNS
	} else if o.mntNS, err = namespace(int(dir), "ns/mnt"); err != nil {
		return o, p.explain("namespaces", err)
	}
	if o.cgroup, err = dir.cgroup(a.host.hierarchy, buf); err != nil {
		return o, p.explain("control group", err)
	}
	return o, nil
}

// observeProgram reads what an exec or a change of user changes.
func (a *Attester) observeProgram(p *Peer, dir procDir, buf *buffer, o *observation) (err error) {
	if o.status, err = dir.status(buf); err != nil {
		return p.explain("user", err)
	}
	if o.program, err = dir.program(); err != nil {
		return p.explain("program", err)
	}
	if o.image, err = dir.image(buf); err != nil {
		return p.explain("program", err)
	}
	if o.image.unfinished() {
		return p.explain("program", ErrChanged)
	}
	return nil
}

// Unchanged looks at an attested process again, and returns an error unless it
// is what it was: the same start of the same program, under the same credentials,
// in the same control group and namespaces. What the process has said meanwhile
// it has said as what was attested. The error is [ErrPeerGone] if the process has
// exited, and otherwise an [*Error], which wraps [ErrChanged] if it is another
// now; attesting it anew may succeed.
func (a *Attester) Unchanged(p *Peer, at *Attested) error {
	if p.pid != at.PID {
		return &Error{p.pid, "process", fmt.Errorf("process %d was attested", at.PID)}
	}
	dir, err := openDir(p.pid)
	if err != nil {
		return p.explain("process directory", err)
	}
	defer dir.close()
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)
	now, err := a.observe(p, dir, buf, &at.seen)
	if err != nil {
		return err
	}
	if !now.equal(at.seen) {
		return p.explain("program", ErrChanged)
	}
	// The pin is of the process that was attested, while it lives.
	return p.Alive()
}
