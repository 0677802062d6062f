package writer

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/audittest"
	"github.com/vouchd/vouchd/audit/internal/format"
	"github.com/vouchd/vouchd/audit/reader"
)

// A faultyDisk is a file system in memory that knows what would survive a power
// cut, and fails on demand. What was written and not synced may be lost in part
// or in whole; so may names that were made and whose directory was not synced.
type faultyDisk struct {
	mu    sync.Mutex
	names map[string]*inode // as the running system sees them
	kept  map[string]*inode // as they are on the disk
	ops   int               // writes, syncs, renames, truncations and removals so far
	at    int               // the operation to fail, from 1; 0: none
	crash bool              // everything fails from then on: the power is cut
	err   error             // what it fails with

	resynced []string // files that were synced again after a sync failed
}

type inode struct {
	data   []byte
	synced []byte
	failed bool // a sync failed
}

var errPower = errors.New("the power is cut")

func newFaultyDisk() *faultyDisk {
	return &faultyDisk{names: map[string]*inode{}, kept: map[string]*inode{}, err: unix.EIO}
}

// op counts one operation and tells whether it fails.
func (d *faultyDisk) op() error {
	if d.ops++; d.at == 0 || d.ops < d.at {
		return nil
	}
	if d.crash {
		return errPower
	}
	if d.ops == d.at {
		return d.err
	}
	return nil
}

// Open implements fs.FS over what the running system sees.
func (d *faultyDisk) Open(name string) (fs.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.view(d.names).Open(name)
}

func (d *faultyDisk) view(names map[string]*inode) fstest.MapFS {
	m := fstest.MapFS{}
	for name, i := range names {
		m[name] = &fstest.MapFile{Data: i.data, Mode: 0o600} // writing makes it anew
	}
	m[format.WALDir] = &fstest.MapFile{Mode: fs.ModeDir | 0o700}
	return m
}

func (d *faultyDisk) create(name string) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.op(); err != nil {
		return nil, err
	}
	if d.names[name] != nil {
		return nil, fs.ErrExist
	}
	d.names[name] = &inode{}
	return &faultyFile{d, d.names[name], name}, nil
}

func (d *faultyDisk) open(name string) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names[name] == nil {
		return nil, fs.ErrNotExist
	}
	return &faultyFile{d, d.names[name], name}, nil
}

func (d *faultyDisk) mkdir(string) error { return nil }

func (d *faultyDisk) rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.op(); err != nil {
		return err
	}
	d.names[to] = d.names[from]
	delete(d.names, from)
	return nil
}

func (d *faultyDisk) remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if strings.HasSuffix(name, ".p") { // directories are there as long as their files are
		return d.op()
	}
	if d.names[name] == nil {
		return fs.ErrNotExist
	}
	if err := d.op(); err != nil {
		return err
	}
	delete(d.names, name)
	return nil
}

func (d *faultyDisk) syncDir(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.op(); err != nil {
		return err
	}
	for name := range d.kept {
		if path.Dir(name) == dir && d.names[name] == nil {
			delete(d.kept, name)
		}
	}
	for name, i := range d.names {
		if path.Dir(name) == dir {
			d.kept[name] = i
		}
	}
	return nil
}

type faultyFile struct {
	d    *faultyDisk
	i    *inode
	name string
}

func (f *faultyFile) ReadAt(b []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return bytes.NewReader(f.i.data).ReadAt(b, off)
}

func (f *faultyFile) WriteAt(b []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	err := f.d.op()
	if err != nil {
		b = b[:len(b)/2] // half of it arrives
	}
	grown := make([]byte, max(len(f.i.data), int(off)+len(b)))
	copy(grown, f.i.data)
	copy(grown[off:], b)
	f.i.data = grown
	return len(b), err
}

func (f *faultyFile) truncate(size int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.op(); err != nil {
		return err
	}
	f.i.data = bytes.Clone(f.i.data[:size])
	return nil
}

func (f *faultyFile) size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return int64(len(f.i.data)), nil
}

// sync fails as Linux does: what was to be written is taken for written from
// then on, and is not on the disk.
func (f *faultyFile) sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.i.failed {
		f.d.resynced = append(f.d.resynced, f.name)
	}
	if err := f.d.op(); err != nil {
		f.i.failed = true
		return err
	}
	if !f.i.failed {
		f.i.synced = bytes.Clone(f.i.data)
	}
	return nil
}

func (f *faultyFile) Close() error { return nil }

// afterPowerCut is what the next start may find. With luck 0 nothing survives
// that was not synced, with luck 2 everything; with luck 1 a part.
func (d *faultyDisk) afterPowerCut(luck int, rng *rand.Rand) *faultyDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := newFaultyDisk()
	names := d.kept
	if luck == 2 || luck == 1 && rng.IntN(2) == 0 {
		names = d.names
	}
	for name, i := range names {
		data := i.synced
		switch {
		case luck == 2:
			data = i.data
		case luck == 1:
			data = sectorsOf(i, rng)
		}
		n := &inode{data: bytes.Clone(data), synced: bytes.Clone(data)}
		next.names[name], next.kept[name] = n, n
	}
	return next
}

// sectorsOf is a file of which any sectors were written that were not synced, and up
// to any length.
func sectorsOf(i *inode, rng *rand.Rand) []byte {
	const sector = 512
	shorter, longer := min(len(i.data), len(i.synced)), max(len(i.data), len(i.synced))
	data := make([]byte, shorter+rng.IntN(longer-shorter+1))
	copy(data, i.synced)
	for at := 0; at < min(len(data), len(i.data)); at += sector {
		if rng.IntN(2) == 0 {
			copy(data[at:min(at+sector, len(data))], i.data[at:])
		}
	}
	return data
}

// A trial runs a daemon on a faulty disk and remembers what it was promised.
type trial struct {
	t    *testing.T
	tpm  *audittest.TPM
	opt  Options
	done []string // request IDs of records that Append returned nil for
	next int
}

func newTrial(t *testing.T) *trial {
	h := newHost(t)
	h.opt.SegmentBytes = 12 << 10
	h.opt.RetryEvery = time.Millisecond
	return &trial{t: t, tpm: h.tpm, opt: h.opt}
}

// run is a daemon's life: it returns with the first error.
func (tr *trial) run(d disk, stop bool) (*Log, error) {
	l, err := open(d, func() error { return nil }, tr.opt)
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	add := func(rs ...audit.Record) error {
		err := l.Append(ctx, rs...)
		for i := range rs {
			if err == nil {
				tr.done = append(tr.done, rs[i].RequestID)
			}
		}
		return err
	}
	start := audit.Record{Event: audit.EventStart, Outcome: audit.Success, RequestID: fmt.Sprintf("start-%d", tr.next), Node: &audit.Node{
		Statement: tr.tpm.Statement(l.signer.key.Public().(ed25519.PublicKey))}}
	if err := add(start); err != nil {
		return l, err
	}
	if err := l.Anchor(ctx); err != nil {
		return l, err
	}
	for range 12 {
		tr.next++
		a, b := audittest.Attested(tr.next), audittest.Attested(tr.next)
		b.RequestID += "-b"
		if err := add(a, b); err != nil {
			return l, err
		}
		if tr.next%5 == 0 {
			if err := l.Anchor(ctx); err != nil {
				return l, err
			}
		}
	}
	if !stop {
		return l, nil
	}
	if err := add(audit.Record{Event: audit.EventStop, Outcome: audit.Success, RequestID: fmt.Sprintf("stop-%d", tr.next)}); err != nil {
		return l, err
	}
	if err := l.Close(ctx); err != nil {
		return l, err
	}
	return l, l.Status().TileErr
}

// abandon ends the background of a log whose machine is gone.
func abandon(l *Log) {
	if l != nil && !l.closing.Swap(true) {
		close(l.quit)
		<-l.stopped
	}
}

// check verifies the log and that everything promised is in it, once and in
// order.
func (tr *trial) check(what string, fsys fs.FS) {
	tr.t.Helper()
	r, err := reader.Verify(context.Background(), fsys, withTPM())
	if err != nil {
		tr.t.Fatalf("%s: %v", what, err)
	}
	if !r.OK {
		tr.t.Errorf("%s: %s %+v", what, r.Verdict, r.Findings)
	}
	var ids []string
	for e, err := range reader.Records(context.Background(), fsys, 0) {
		if err != nil {
			tr.t.Fatalf("%s: %v", what, err)
		}
		if e.Leaf.RequestID != "" {
			ids = append(ids, e.Leaf.RequestID)
		}
	}
	at := 0
	for _, id := range tr.done {
		i := slices.Index(ids[at:], id)
		if i < 0 {
			tr.t.Fatalf("%s: record %s was promised and is not in the log", what, id)
		}
		at += i + 1
	}
}

func TestPowerCutAtEveryOperationLosesNothingPromised(t *testing.T) {
	t.Parallel()
	whole := newFaultyDisk()
	if _, err := newTrial(t).run(whole, true); err != nil {
		t.Fatal(err)
	}
	for at := 1; at <= whole.ops; at++ {
		for luck := range 3 {
			what := fmt.Sprintf("power cut at operation %d of %d, luck %d", at, whole.ops, luck)
			rng := rand.New(rand.NewPCG(uint64(at), uint64(luck)))
			tr := newTrial(t)
			d := newFaultyDisk()
			d.at, d.crash = at, true
			l, _ := tr.run(d, true)
			abandon(l)
			d = d.afterPowerCut(luck, rng)
			if _, err := tr.run(d, true); err != nil {
				t.Fatalf("%s: starting again: %v", what, err)
			}
			tr.check(what, d)
		}
	}
}

// A longer log: segments turn into tiles and are removed.
func TestPowerCutWhileTilesReplaceSegmentsLosesNothingPromised(t *testing.T) {
	t.Parallel()
	life := func(tr *trial, d disk) error {
		l, err := open(d, func() error { return nil }, tr.opt)
		if err != nil {
			return err
		}
		defer abandon(l)
		ctx := context.Background()
		if err := l.Append(ctx, audit.Record{Event: audit.EventStart, Outcome: audit.Success, Node: &audit.Node{Statement: tr.tpm.Statement(l.signer.key.Public().(ed25519.PublicKey))}}); err != nil {
			return err
		}
		for range 10 {
			rs := make([]audit.Record, audit.MaxAppend)
			for i := range rs {
				tr.next++
				rs[i] = audit.Record{Event: audit.EventBundle, Outcome: audit.Success, RequestID: fmt.Sprint(tr.next)}
			}
			if err := l.Append(ctx, rs...); err != nil {
				return err
			}
			for i := range rs {
				tr.done = append(tr.done, rs[i].RequestID)
			}
		}
		if err := l.Append(ctx, audit.Record{Event: audit.EventStop, Outcome: audit.Success}); err != nil {
			return err
		}
		if err := l.Close(ctx); err != nil {
			return err
		}
		return l.Status().TileErr
	}
	whole := newFaultyDisk()
	if err := life(newTrial(t), whole); err != nil {
		t.Fatal(err)
	}
	if firsts, err := format.Segments(whole); err != nil || firsts[0] == 0 {
		t.Fatalf("no segment was removed: %v, %v", firsts, err)
	}
	for at := 1; at <= whole.ops; at += 4 {
		luck := at / 4 % 3
		what := fmt.Sprintf("power cut at operation %d of %d, luck %d", at, whole.ops, luck)
		tr := newTrial(t)
		d := newFaultyDisk()
		d.at, d.crash = at, true
		if err := life(tr, d); err == nil && at < whole.ops/2 {
			t.Fatalf("%s: nothing happened", what)
		}
		d = d.afterPowerCut(luck, rand.New(rand.NewPCG(uint64(at), 7)))
		if err := life(tr, d); err != nil {
			t.Fatalf("%s: starting again: %v", what, err)
		}
		tr.check(what, d)
		tr.check(what+", and again", d.afterPowerCut(0, nil))
	}
}

func TestErrorAtEveryOperationIsMendedAndLosesNothingPromised(t *testing.T) {
	t.Parallel()
	whole := newFaultyDisk()
	if _, err := newTrial(t).run(whole, true); err != nil {
		t.Fatal(err)
	}
	for at := 1; at <= whole.ops; at++ {
		what := fmt.Sprintf("I/O error at operation %d of %d", at, whole.ops)
		tr := newTrial(t)
		d := newFaultyDisk()
		d.at = at
		l, err := tr.run(d, false)
		if err != nil && tr.next == 0 { // a daemon that can't record its start ends
			abandon(l)
			if l, err = tr.run(d, false); l == nil {
				t.Fatalf("%s: starting again: %v", what, err)
			}
		}
		waitFor(t, what, func() bool {
			return l.Append(context.Background(), audit.Record{Event: audit.EventStop, Outcome: audit.Success, RequestID: "last"}) == nil
		})
		tr.done = append(tr.done, "last")
		if err := l.Close(context.Background()); err != nil { // then the next daemon puts it right
			if _, err = tr.run(d, true); err != nil {
				t.Fatalf("%s: starting again: %v", what, err)
			}
		}
		tr.check(what, d)
		tr.check(what+", then the power is cut", d.afterPowerCut(0, nil))
		d.mu.Lock()
		resynced := d.resynced
		d.mu.Unlock()
		if len(resynced) > 0 {
			t.Errorf("%s: synced again after a sync failed: %v", what, resynced)
		}
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(3 * time.Minute); !done(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%s: gave up waiting", what)
		}
	}
}

func TestFullDiskRefusesAndRecoversWhenSpaceReturns(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
	h := newHost(t)
	mount := filepath.Join(t.TempDir(), "small")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", mount, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, 0); err != nil {
			t.Error(err)
		}
	})
	h.dir = filepath.Join(mount, "log")
	l := h.start()
	ballast := filepath.Join(mount, "ballast")
	b, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(b, zeroes{}); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	b.Close()
	promised := l.Status().Size
	var refusal error
	for range 1000 { // what the segment has room for is still taken
		if refusal = l.Append(context.Background(), audittest.Attested(1)); refusal != nil {
			break
		}
		promised++
	}
	if !errors.Is(refusal, audit.ErrUnwritable) || !errors.Is(refusal, unix.ENOSPC) {
		t.Fatalf("appending to a full disk: %v", refusal)
	}
	if err := l.Append(context.Background(), audittest.Attested(2)); !errors.Is(err, audit.ErrUnwritable) {
		t.Errorf("the second append: %v, want ErrUnwritable", err)
	}
	if err := l.Status().Err; !errors.Is(err, audit.ErrUnwritable) {
		t.Errorf("the status says %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "recovering from a full disk", func() bool { return l.Status().Err == nil })
	h.append(l, audittest.Attested(3))
	h.stop(l)
	r := h.verify(withTPM())
	if got := found(r, reader.Warning); !r.OK || !slices.Equal(got, []string{"was-unwritable"}) || r.Size < promised {
		t.Errorf("%s: warnings %v, %d records of %d promised", r.Verdict, got, r.Size, promised)
	}
}

type zeroes struct{}

func (zeroes) Read(b []byte) (int, error) { clear(b); return len(b), nil }
