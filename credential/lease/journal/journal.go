// Package journal is the write-ahead file of leases: the latest state of each
// from before its upstream is asked until its end is confirmed.
//
// It relies on the sealer to keep its key to this machine, and on the file's
// directory to have one owner. What a state means is the lease engine's
// business; the journal gives back what it was given, or refuses the start.
//
// Out of reach: an older copy of the file, put back as root, opens as well. It
// forgets the leases granted since, which the attestation log still has.
package journal

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/vouchd/vouchd/credential"
)

const (
	// journalLabel binds the sealed key to its use.
	journalLabel = "vouchd lease journal"
	// compactAbove is how large the journal grows before it is looked at
	// whether it is mostly of leases that have ended, in bytes.
	compactAbove = 1 << 20
	// batchMost bounds the changes that share one write.
	batchMost = 512
)

// A Journal is an open journal. Its methods are safe for concurrent use.
//
// A write or sync that fails is final: what is on the disk is unknown then, and
// every later change is refused until the daemon starts again.
type Journal struct {
	path   string
	key    [32]byte // of the machine; each file has a key derived from it
	sealed []byte   // key, as the file carries it

	queue chan *change
	done  chan struct{} // closed when run has returned

	mu     sync.Mutex // guards closed and sends on queue
	closed bool

	failed atomic.Pointer[error] // broken, for others to see

	// The rest belongs to run.
	file  *frameFile
	live  map[string][]byte // the latest state of each lease, encoded
	bytes int               // in live
	// compactAt is the size from which rewriting is tried.
	compactAt int64
	broken    error
}

// A change is the new state of one lease, or its end.
type change struct {
	id    string
	state []byte // nil for the end
	err   chan error
}

// Open opens the journal at path and returns the states in it, by lease. If there is none,
// it makes a new one, with a key sealed to the machine. It always continues in a new file:
// a torn tail is left behind with the old one, and no key ever encrypts two things under one
// number.
func Open(ctx context.Context, path string, sealer credential.Sealer) (*Journal, map[string][]byte, error) {
	j := &Journal{path: path, live: make(map[string][]byte), queue: make(chan *change, batchMost), done: make(chan struct{})}
	err := j.load(ctx, sealer)
	if errors.Is(err, fs.ErrNotExist) {
		j.key = newKey()
		j.sealed, err = sealer.Seal(ctx, journalLabel, j.key[:])
	}
	if err != nil {
		return nil, nil, fmt.Errorf("opening lease journal %s: %w", path, err)
	}
	if _, err := j.rewrite(); err != nil {
		return nil, nil, fmt.Errorf("writing lease journal %s: %w", path, err)
	}
	states := make(map[string][]byte, len(j.live))
	for id, state := range j.live {
		states[id] = state
	}
	go j.run()
	return j, states, nil
}

// load replays the file into live.
func (j *Journal) load(ctx context.Context, sealer credential.Sealer) error {
	f, err := os.Open(j.path)
	if err != nil {
		return err
	}
	defer f.Close()
	head, frames, err := readHead(f)
	if err != nil {
		return err
	}
	key, err := sealer.Unseal(ctx, journalLabel, head.sealed)
	if err != nil {
		return fmt.Errorf("its key does not open on this TPM: %w; if the TPM was cleared or the file is another machine's, move it away, and end its leases upstream by hand", err)
	}
	if len(key) != len(j.key) {
		return fmt.Errorf("its key has %d bytes, want %d", len(key), len(j.key))
	}
	j.key, j.sealed = [32]byte(key), head.sealed
	aead, err := head.cipher(j.key)
	if err != nil {
		return err
	}
	return readFrames(f, frames, aead, func(plain []byte) error {
		var changes []journalChange
		if err := json.Unmarshal(plain, &changes); err != nil {
			return err
		}
		for _, c := range changes {
			j.apply(c.ID, c.State)
		}
		return nil
	})
}

// journalChange is a change as it is written; without a state it is the end.
type journalChange struct {
	ID    string          `json:"id"`
	State json.RawMessage `json:"state,omitempty"`
}

func (j *Journal) apply(id string, state []byte) {
	j.bytes += len(state) - len(j.live[id])
	if state == nil {
		delete(j.live, id)
		return
	}
	j.live[id] = state
}

// Put makes the state of a lease durable.
func (j *Journal) Put(id string, state []byte) error { return j.change(id, state) }

// End makes durable that nothing is left of a lease.
func (j *Journal) End(id string) error { return j.change(id, nil) }

func (j *Journal) change(id string, state []byte) error {
	c := &change{id: id, state: state, err: make(chan error, 1)}
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return credential.ErrClosed
	}
	j.queue <- c
	j.mu.Unlock()
	return <-c.err
}

// Close ends the journal after what is queued.
func (j *Journal) Close() {
	j.mu.Lock()
	if !j.closed {
		j.closed = true
		close(j.queue)
	}
	j.mu.Unlock()
	<-j.done
}

// Err returns why the journal takes no more changes, if it has failed.
func (j *Journal) Err() error {
	if err := j.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// Derive returns a key for another use on this machine, with the lifetime of the journal's
// own.
func (j *Journal) Derive(use string) ([]byte, error) {
	return hkdf.Key(sha256.New, j.key[:], nil, use, sha256.Size)
}

// run writes changes: those that wait while one write is under way share the
// next.
func (j *Journal) run() {
	defer close(j.done)
	for c := range j.queue {
		batch := []*change{c}
		for len(batch) < batchMost {
			select {
			case c, ok := <-j.queue:
				if ok {
					batch = append(batch, c)
					continue
				}
			default:
			}
			break
		}
		err := j.write(batch)
		for _, c := range batch {
			c.err <- err
		}
	}
	j.file.close()
}

func (j *Journal) write(batch []*change) error {
	if j.broken != nil {
		return fmt.Errorf("lease journal %s stopped after an earlier error; repair the disk and restart vouchd: %w", j.path, j.broken)
	}
	j.broken = j.append(batch)
	if j.broken != nil {
		j.failed.Store(&j.broken)
	}
	return j.broken
}

func (j *Journal) append(batch []*change) error {
	changes := make([]journalChange, len(batch))
	for i, c := range batch {
		changes[i] = journalChange{c.id, c.state}
	}
	if err := j.file.write(changes); err != nil {
		return fmt.Errorf("writing lease journal %s: %w", j.path, err)
	}
	for _, c := range batch {
		j.apply(c.id, c.state)
	}
	if j.file.size < j.compactAt || j.file.size < 4*int64(j.bytes) {
		return nil
	}
	replaced, err := j.rewrite()
	if err != nil && replaced {
		return fmt.Errorf("rewriting lease journal %s: %w", j.path, err)
	}
	if err != nil {
		j.compactAt = 2 * j.file.size // the old file is as good, if longer
	}
	return nil
}

// rewrite replaces the file by one that holds the live leases only, and continues
// in that: it stays open, so it is not for a function that replaces contents. It reports whether it got as far as replacing it.
func (j *Journal) rewrite() (replaced bool, err error) {
	temporary := filepath.Join(filepath.Dir(j.path), "."+filepath.Base(j.path)+".new")
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return false, err
	}
	file, err := j.fill(f)
	if err == nil {
		err = os.Rename(temporary, j.path)
	}
	if err != nil {
		f.Close()
		os.Remove(temporary)
		return false, err
	}
	if j.file != nil {
		j.file.close()
	}
	j.file, j.compactAt = file, compactAbove
	return true, syncDir(filepath.Dir(j.path))
}

func (j *Journal) fill(f *os.File) (*frameFile, error) {
	file, err := newFrameFile(f, j.sealed, j.key)
	if err != nil {
		return nil, err
	}
	var changes []journalChange
	for id, state := range j.live {
		changes = append(changes, journalChange{id, state})
		if len(changes) == batchMost {
			if err := file.add(changes); err != nil {
				return nil, err
			}
			changes = changes[:0]
		}
	}
	if err := file.add(changes); err != nil {
		return nil, err
	}
	return file, file.f.Sync()
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
