package file

import (
	"cmp"
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Hasher computes digests of files and keeps the last of them. One file is
// hashed once at a time, however many ask for it.
//
// A read of a file system that does not answer cannot be ended. Who is past the
// time limit is given up: their worker is lost until the read returns, and another
// takes its place, but not for the same person beyond their share.
type Hasher struct {
	maxSize int64
	timeout time.Duration
	keep    int
	slots   int // hashings at a time: as many as there are processors
	share   int // of the slots, and of workers that are lost, for one person

	mu      sync.Mutex // guards the fields below
	kept    map[ID]*list.Element
	recent  list.List // of *digest, last used first
	running map[ID]*hashing
	waiting []*hashing
	active  int
	people  map[uint32]*sharer // who has a worker, or waits for one
	turn    uint64
	stats   Stats               // but for what can be counted
	trees   map[[32]byte]string // digests of trees, by the state of all their entries
}

type digest struct {
	file ID
	sum  string
}

// A hashing is under way until done is closed; then its other fields are set.
type hashing struct {
	done chan struct{}
	sum  string
	err  error

	file    ID
	person  uint32
	open    func() (fd int, err error)
	release func() // of what open needs
	limit   *time.Timer
	started bool
	ended   bool // told to those who wait
}

// A sharer is a person for whom files are hashed.
type sharer struct {
	waiting, active, lost int
	turn                  uint64 // when they had a worker last
}

// Stats are numbers about the work that attestations have caused.
type Stats struct {
	Hashing int            // files that are being hashed
	Waiting int            // for a worker
	Lost    int            // workers that wait for a file system which does not answer
	LostBy  map[uint32]int // the same, by the person that each was for

	Hashed  uint64 // files, since the start
	Refused uint64 // for their size, the time they took, or the person's share
}

// Stats returns numbers of now.
func (h *Hasher) Stats() Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.stats
	s.Hashing, s.Waiting, s.LostBy = h.active, len(h.waiting), make(map[uint32]int)
	for person, p := range h.people {
		if p.lost > 0 {
			s.Lost += p.lost
			s.LostBy[person] = p.lost
		}
	}
	return s
}

// NewHasher returns one that hashes files of at most maxSize bytes, each within the
// timeout, and keeps so many digests. Zero values mean the defaults: 1 GiB, 10 s and
// 4096.
func NewHasher(maxSize int64, timeout time.Duration, keep int) *Hasher {
	slots := max(2, runtime.GOMAXPROCS(0))
	return &Hasher{
		maxSize: cmp.Or(maxSize, 1<<30),
		timeout: cmp.Or(timeout, 10*time.Second),
		keep:    cmp.Or(keep, 4096),
		slots:   slots,
		share:   slots / 2,
		kept:    make(map[ID]*list.Element),
		running: make(map[ID]*hashing),
		people:  make(map[uint32]*sharer),
	}
}

// sum returns the SHA-256 of the file in hexadecimal. The file is opened only
// if its digest isn't known; what is opened must be that very file, unchanged
// from before to after. The hashing goes on after ctx has ended, for the next
// to ask, but not longer than the time limit.
func (h *Hasher) sum(ctx context.Context, person uint32, file ID, open func() (fd int, err error)) (string, error) {
	return h.ask(ctx, &hashing{file: file, person: person, open: open, release: func() {}})
}

// Pinned returns the SHA-256, in hexadecimal, of a file that the caller has pinned
// and may let go, on a file system of the host's with that device number; person is
// whom it is hashed for.
func (h *Hasher) Pinned(ctx context.Context, person uint32, pin Pinned, host uint64) (string, error) {
	file := pin.ID
	file.host = host
	if sum, ok := h.known(file); ok {
		return sum, nil
	}
	pin, err := pin.dup()
	if err != nil {
		return "", err
	}
	return h.ask(ctx, &hashing{file: file, person: person, open: pin.open, release: pin.Close})
}

func (h *Hasher) known(file ID) (sum string, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e, ok := h.kept[file]
	if !ok {
		return "", false
	}
	h.recent.MoveToFront(e)
	return e.Value.(*digest).sum, true
}

// ask waits for a hashing, or for the one that is under way already. It takes
// over what the hashing holds.
func (h *Hasher) ask(ctx context.Context, mine *hashing) (string, error) {
	if sum, ok := h.known(mine.file); ok {
		mine.release()
		return sum, nil
	}
	h.mu.Lock()
	r, ok := h.running[mine.file]
	if !ok {
		if err := h.admit(mine); err != nil {
			h.stats.Refused++
			h.mu.Unlock()
			mine.release()
			return "", err
		}
		r = mine
	}
	h.mu.Unlock()
	if ok {
		mine.release()
	}
	select {
	case <-r.done:
		return r.sum, r.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// admit has the hashing wait for a worker. The caller holds mu.
func (h *Hasher) admit(r *hashing) error {
	if r.file.size > uint64(h.maxSize) {
		return fmt.Errorf("file of %d bytes is larger than the %d that are hashed", r.file.size, h.maxSize)
	}
	p := h.people[r.person]
	if p == nil {
		p = &sharer{}
		h.people[r.person] = p
	}
	if p.lost >= h.share {
		return fmt.Errorf("%d files of user %d are being read from a file system that does not answer, which is all that one user may have; no other is hashed until it does", p.lost, r.person)
	}
	r.done = make(chan struct{})
	h.running[r.file] = r
	h.waiting = append(h.waiting, r)
	p.waiting++
	r.limit = time.AfterFunc(h.timeout, func() { h.giveUp(r) })
	h.dispatch()
	return nil
}

// dispatch gives free workers to those who wait, first to who had none for the
// longest time. The caller holds mu.
func (h *Hasher) dispatch() {
	for h.active < h.slots {
		next := -1
		for i, r := range h.waiting {
			p := h.people[r.person]
			if p.active+p.lost < h.share && (next < 0 || p.turn < h.people[h.waiting[next].person].turn) {
				next = i
			}
		}
		if next < 0 {
			return
		}
		r := h.waiting[next]
		h.waiting = slices.Delete(h.waiting, next, next+1)
		p := h.people[r.person]
		h.turn++
		p.turn = h.turn
		p.waiting--
		p.active++
		h.active++
		h.stats.Hashed++
		r.started = true
		go h.run(r)
	}
}

// run hashes the file.
func (h *Hasher) run(r *hashing) {
	sum, err := hashOpened(r, h.timeout)
	r.release()
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.people[r.person]
	if r.ended { // it was given up
		p.lost--
	} else {
		p.active--
		h.active--
		h.finish(r, sum, err)
	}
	h.leave(r.person)
	h.dispatch()
}

// giveUp ends the wait for a hashing that takes too long.
func (h *Hasher) giveUp(r *hashing) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r.ended {
		return
	}
	p := h.people[r.person]
	if r.started {
		p.active--
		p.lost++
		h.active--
	} else {
		h.waiting = slices.DeleteFunc(h.waiting, func(w *hashing) bool { return w == r })
		p.waiting--
		defer r.release()
	}
	h.stats.Refused++
	h.finish(r, "", tooLong(r.file, h.timeout))
	h.leave(r.person)
	h.dispatch()
}

// leave forgets a person who has nothing left. The caller holds mu.
func (h *Hasher) leave(person uint32) {
	if p := h.people[person]; p.waiting+p.active+p.lost == 0 {
		delete(h.people, person)
	}
}

// finish tells those who wait, and keeps the digest if there is one that can
// be relied on later. The caller holds mu.
func (h *Hasher) finish(r *hashing, sum string, err error) {
	r.limit.Stop()
	r.sum, r.err, r.ended = sum, err, true
	delete(h.running, r.file)
	defer close(r.done)
	if err != nil || !settled(r.file.ctime, time.Now()) {
		return
	}
	h.kept[r.file] = h.recent.PushFront(&digest{r.file, sum})
	if h.recent.Len() > h.keep {
		delete(h.kept, h.recent.Remove(h.recent.Back()).(*digest).file)
	}
}

// settled reports whether a further change of a file would show in its ctime. The clock of a file system stands still between ticks: of the kernel,
// at most 10 ms apart, or of the medium, up to 2 s on some, whose stamps have
// no fraction of a second. A change within the tick of the last one leaves no
// trace.
func settled(ctime unix.StatxTimestamp, now time.Time) bool {
	tick := 20 * time.Millisecond
	if ctime.Nsec == 0 {
		tick = 2 * time.Second
	}
	return now.Sub(time.Unix(ctime.Sec, int64(ctime.Nsec))) > 2*tick
}

// blocks are the buffers to hash through.
var blocks = sync.Pool{New: func() any { return new([128 << 10]byte) }}

func hashOpened(r *hashing, timeout time.Duration) (string, error) {
	fd, err := r.open()
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return hashFile(r.file, fd, timeout)
}

func hashFile(file ID, fd int, timeout time.Duration) (string, error) {
	end := time.Now().Add(timeout)
	if err := checkFile(file, fd); err != nil {
		return "", err
	}
	if err := notSparse(fd); err != nil {
		return "", err
	}
	block := blocks.Get().(*[128 << 10]byte)
	defer blocks.Put(block)
	sum := sha256.New()
	var total uint64
	for {
		if time.Now().After(end) {
			return "", tooLong(file, timeout)
		}
		n, err := unix.Read(fd, block[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return "", err
		}
		if n == 0 {
			break
		}
		if total += uint64(n); total > file.size {
			break // it grows; checkFile says so
		}
		sum.Write(block[:n])
	}
	if err := checkFile(file, fd); err != nil {
		return "", err
	}
	if total != file.size {
		return "", fmt.Errorf("read %d bytes of a file of %d", total, file.size)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func tooLong(file ID, timeout time.Duration) error {
	return fmt.Errorf("hashing %d bytes took longer than %v", file.size, timeout)
}

// notSparse refuses a large file that is mostly holes, which cost nothing to make
// and much to hash. Compression makes no program that small.
func notSparse(fd int) error {
	const large, least = 16 << 20, 16
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if stored := st.Blocks * 512; st.Size > large && stored < st.Size/least {
		return fmt.Errorf("it is mostly holes: %d bytes of its %d are stored", stored, st.Size)
	}
	return nil
}

// checkFile returns an error unless fd is the file, in that state, and of a
// kind that shows everybody the same contents.
func checkFile(file ID, fd int) error {
	st, err := statx(fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.New("not a regular file")
	}
	file.host = 0
	if identify(&st) != file {
		return errors.New("the file changed while it was hashed")
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	if fs.Type == unix.FUSE_SUPER_MAGIC {
		return errors.New("it is on a FUSE file system, whose server may show the daemon other contents than the kernel runs")
	}
	return nil
}

// Hash returns where the path leads and the SHA-256 of the file there, in
// hexadecimal, if a process of the user can change neither the file nor what
// the path leads to. For root there is no such file.
func Hash(ctx context.Context, path string, uid uint32) (real, sum string, err error) {
	if uid == 0 {
		return "", "", fmt.Errorf("%s: root can rewrite every file", path)
	}
	if real, err = Resolve(path, NotBy(uid)); err != nil {
		return "", "", err
	}
	_, sum, err = NewHasher(0, 0, 0).Path(ctx, 0, real)
	if err != nil {
		return "", "", fmt.Errorf("%s: %w", path, err)
	}
	return real, sum, nil
}
