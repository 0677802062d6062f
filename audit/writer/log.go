package writer

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/internal/format"
)

// Options say how a log is written. Origin and Key are needed.
type Options struct {
	// Origin is the log's name, the first line of every checkpoint: for
	// instance vouchd.example.org/9f2c41d0. It stays the same for the log's
	// life and belongs to this log alone.
	Origin string
	// Key signs checkpoints. The caller keeps it sealed to the TPM and has the
	// TPM certify its public half.
	Key ed25519.PrivateKey
	// TPM anchors the log. Without it there are no anchors, and verifying can
	// only say what the holder of Key wrote.
	TPM audit.Anchorer
	// Begun says that a log with this key exists. Where there is none in the
	// directory, opening it fails with [ErrMissing]; otherwise one is begun.
	Begun bool
	// Keep is given a signed checkpoint of what the TPM has anchored, before it
	// counts, and keeps it durably where the log is not; Kept is what it was given
	// last. A log that does not contain that is not opened. Both may be nil.
	Keep func(signed []byte) error
	Kept []byte
	// Restart says that an administrator had this log begun in place of another;
	// that is recorded. Nil for a log that goes on.
	Restart *Restart
	// Now is the wall clock, time.Now if nil.
	Now func() time.Time
	// Logger takes diagnostics, [slog.Default] if nil.
	Logger *slog.Logger

	// AnchorEvery is how long a record waits for an anchor at most, 60 s if
	// zero; AnchorRecords is after how many records one is made sooner, 10,000
	// if zero.
	AnchorEvery   time.Duration
	AnchorRecords int
	// SegmentBytes and SegmentAge are when a new segment is begun: 8 MiB and
	// 24 h if zero.
	SegmentBytes int64
	SegmentAge   time.Duration
	// MaxBytes bounds what the log takes on the disk; zero is no bound. Near it,
	// the oldest segments are removed, as far as their records are older than
	// KeepFor, and the removal is recorded. Where that isn't enough, Append
	// refuses with [ErrFull] what hands something out; a part of MaxBytes is
	// reserved for what a daemon needs to start, stop and end leases.
	MaxBytes int64
	KeepFor  time.Duration
	// RetryEvery is how long to wait before an unwritable log is tried again,
	// 5 s if zero.
	RetryEvery time.Duration
}

// A Restart is why a log is begun in place of another, and what is known of that.
type Restart struct {
	Reason string
	Key    string // note verifier key; empty: not known
	Size   uint64 // records it had at least
}

func (o *Options) setDefaults() {
	set(&o.AnchorEvery, 60*time.Second)
	set(&o.AnchorRecords, 10_000)
	set(&o.SegmentBytes, 8<<20)
	set(&o.SegmentAge, 24*time.Hour)
	set(&o.RetryEvery, 5*time.Second)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
}

func set[T comparable](v *T, standard T) {
	var zero T
	if *v == zero {
		*v = standard
	}
}

// ErrMissing means that a log which exists is not where it should be, and
// ErrRolledBack that an older state of it was put in its place.
var (
	ErrMissing    = errors.New("the attestation log is missing")
	ErrRolledBack = errors.New("this is an older state of the attestation log")
)

// ErrClosed means that the log was closed.
var ErrClosed = errors.New("attestation log is closed")

// A Log is an attestation log that this process writes. Its methods are safe
// for concurrent use.
//
// Locks are taken in the order anchoring, commit, mu.
type Log struct {
	opt    Options
	disk   disk
	close  func() error // releases the directory
	signer *signer
	bootID string

	anchoring sync.Mutex // one anchor at a time

	commit sync.Mutex // held while a batch is written; guards the fields below
	seg    *segment
	tree   format.Tree // of what is durable

	mu      sync.Mutex // never held during I/O; guards the fields below
	pending *batch     // takes records while the batch before it is written
	spare   *batch     // its memory serves again
	next    uint64     // index of the next record
	scratch audit.Leaf // the one being encoded
	err     error      // sticky: why nothing can be written
	refused uint64     // records refused since then
	room    room
	carry   carried   // what a new segment repeats
	segDue  bool      // the next batch begins a segment
	segFrom time.Time // when the segment began
	status  Status

	tiler tiler         // the background's; Close's once that has ended
	tiled atomic.Uint64 // records that the tiler has taken

	wake    chan struct{} // asks the background to look around
	closing atomic.Bool
	quit    chan struct{} // closed to end the background
	stopped chan struct{} // closed when it has ended
}

// A Status is the log's state at one moment.
type Status struct {
	Origin      string
	Key         string    // the public key, as a note verifier key
	Size        uint64    // durable records
	Root        [32]byte  // of the tree with Size records
	LastAppend  time.Time // zero before the first
	Anchored    uint64    // how many records the last anchor covers
	AnchorIndex uint64    // the last anchor's record, where Anchored is not zero
	LastAnchor  time.Time // zero where this process has made none
	AnchorErr   error     // why the last try to anchor failed
	SegmentLen  int64     // bytes in the segment being written
	TileErr     error     // why the tiles lag behind
	DiskBytes   int64     // what the log took on the disk when the tiles were last written
	FullSoon    bool      // it is nearly as large as it may be, and nothing is old enough to go
	Err         error     // why nothing can be written; wraps ErrUnwritable
}

// Open opens the log in dir, or creates it, and recovers it to its last valid
// checkpoint. An unfinished batch at the end, which a crash leaves, is cut off
// and that is recorded. Damage before that is an error that names the file and
// offset: nothing is repaired, and nothing is begun anew over it. It returns
// [ErrInUse] while another process has the log.
func Open(dir string, o Options) (*Log, error) {
	d, err := openDirectory(dir)
	if err != nil {
		return nil, fmt.Errorf("opening attestation log: %w", err)
	}
	l, err := open(d, d.Close, o)
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("opening attestation log %s: %w", dir, err)
	}
	return l, nil
}

func open(d disk, release func() error, o Options) (*Log, error) {
	o.setDefaults()
	s, err := newSigner(o.Origin, o.Key)
	if err != nil {
		return nil, err
	}
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	l := &Log{
		opt: o, disk: d, close: release, signer: s,
		bootID:  strings.TrimSpace(string(bootID)),
		wake:    make(chan struct{}, 1),
		quit:    make(chan struct{}),
		stopped: make(chan struct{}),
		status:  Status{Origin: s.Name(), Key: s.vkey},
		room:    room{pass: make(chan struct{})},
	}
	l.tiler = tiler{disk: d, signer: s}
	l.pending = l.freshBatch()
	cut, err := l.recover()
	if err != nil {
		return nil, err
	}
	err = l.newest()
	if err == nil {
		err = l.begin(cut)
	}
	if err != nil {
		if l.seg != nil {
			l.seg.file.Close()
		}
		return nil, err
	}
	go l.run()
	return l, nil
}

// begin writes what the log itself has to say before anybody else.
func (l *Log) begin(cut *audit.LogEvent) error {
	if l.segDue {
		if err := l.appendOwn(context.Background(), audit.Record{}, nil); err != nil {
			return err
		}
	}
	if r := l.opt.Restart; r != nil {
		err := l.appendOwn(context.Background(), audit.Record{Event: audit.EventRestart, Outcome: audit.Success, Reason: r.Reason}, &audit.LogEvent{Key: r.Key, Size: r.Size})
		if err != nil {
			return err
		}
	}
	if cut == nil {
		return nil
	}
	l.opt.Logger.Warn("attestation log: cut off an unfinished batch that no caller was told of", "bytes", cut.Cut, "records", l.next)
	return l.appendOwn(context.Background(), audit.Record{
		Event: audit.EventRecover, Outcome: audit.Success, Reason: "an unfinished batch at the end was cut off",
	}, cut)
}

// Close anchors what is not anchored yet and closes the log. The caller stops
// appending first, with [EventStop] as its last record. The error says if the
// end of the log is not anchored, not published, or not closed cleanly.
func (l *Log) Close(ctx context.Context) error {
	if l.closing.Swap(true) {
		return ErrClosed
	}
	close(l.quit)
	<-l.stopped
	err := errors.Join(l.Anchor(ctx), l.tile(ctx, true))
	l.commit.Lock()
	defer l.commit.Unlock()
	l.mu.Lock()
	l.fail(ErrClosed)
	l.mu.Unlock()
	return errors.Join(err, l.seg.close(), l.close())
}

// Status returns the log's state.
func (l *Log) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.status
	s.Err = l.err
	if s.Err == nil && l.room.full {
		s.Err = audit.ErrFull
	}
	return s
}

// run does what no caller waits for: anchors, and trying again after an error.
func (l *Log) run() {
	defer close(l.stopped)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { <-l.quit; cancel() }()

	anchor := time.NewTicker(l.opt.AnchorEvery)
	defer anchor.Stop()
	retry := time.NewTicker(l.opt.RetryEvery)
	retry.Stop()
	defer retry.Stop()
	l.tile(ctx, true) // what the last run left, and what begin wrote
	l.retain(ctx)
	for {
		select {
		case <-l.quit:
			return
		case <-anchor.C:
			l.anchorIfDue(ctx, 1)
			l.tile(ctx, true)
			l.retain(ctx)
		case <-retry.C:
			if l.mend(ctx) {
				retry.Stop()
			}
		case <-l.wake:
			if l.broken() {
				retry.Reset(l.opt.RetryEvery)
			} else {
				l.anchorIfDue(ctx, l.opt.AnchorRecords)
				l.tile(ctx, false)
				l.retain(ctx)
			}
		}
	}
}

// tile brings the tiles up to what is durable. What fails is tried again at the
// next occasion.
func (l *Log) tile(ctx context.Context, publish bool) error {
	err := l.tiler.advance(ctx, l.Status().Size, publish)
	if err != nil {
		if ctx.Err() == nil {
			l.opt.Logger.Error("attestation log: tiles lag behind", "err", err)
		}
		l.tiled.Store(0)
	} else {
		l.tiled.Store(uint64(l.tiler.set.Tree.Size))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status.TileErr = err
	return err
}

// broken tells whether a write failed and the log was not mended since.
func (l *Log) broken() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Is(l.err, audit.ErrUnwritable)
}

// nudge wakes the background.
func (l *Log) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// sinceBoot is the monotonic time that goes on while the machine sleeps.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
