package process

import (
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// hashes computes digests of files and keeps the last of them. One file is
// hashed once at a time, however many ask for it.
type hashes struct {
	maxSize int64
	timeout time.Duration
	keep    int
	slots   chan struct{} // as many hashings at a time as there are processors

	mu      sync.Mutex // guards the fields below
	kept    map[fileID]*list.Element
	recent  list.List // of *digest, last used first
	running map[fileID]*hashing
}

type digest struct {
	file fileID
	sum  string
}

// A hashing is under way until done is closed; then its other fields are set.
type hashing struct {
	done chan struct{}
	sum  string
	err  error
}

func newHashes(maxSize int64, timeout time.Duration, keep int) *hashes {
	return &hashes{
		maxSize: maxSize,
		timeout: timeout,
		keep:    keep,
		slots:   make(chan struct{}, runtime.GOMAXPROCS(0)),
		kept:    make(map[fileID]*list.Element),
		running: make(map[fileID]*hashing),
	}
}

// sum returns the SHA-256 of the file in hexadecimal. The file is opened only
// if its digest isn't known; what is opened must be that very file, unchanged
// from before to after. The hashing goes on after ctx has ended, for the next
// to ask, but not longer than the time limit.
func (h *hashes) sum(ctx context.Context, file fileID, open func() (fd int, err error)) (string, error) {
	h.mu.Lock()
	if e, ok := h.kept[file]; ok {
		h.recent.MoveToFront(e)
		sum := e.Value.(*digest).sum
		h.mu.Unlock()
		return sum, nil
	}
	if file.size > uint64(h.maxSize) {
		h.mu.Unlock()
		return "", fmt.Errorf("file of %d bytes is larger than the %d that are hashed", file.size, h.maxSize)
	}
	running, ok := h.running[file]
	if !ok {
		running = &hashing{done: make(chan struct{})}
		h.running[file] = running
	}
	h.mu.Unlock()
	if !ok {
		if fd, err := open(); err != nil {
			h.finish(file, running, "", err)
		} else {
			go h.run(file, running, fd)
		}
	}
	select {
	case <-running.done:
		return running.sum, running.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// run hashes the file and closes fd.
func (h *hashes) run(file fileID, r *hashing, fd int) {
	defer unix.Close(fd)
	ctx, cancel := context.WithTimeoutCause(context.Background(), h.timeout,
		fmt.Errorf("hashing %d bytes took longer than %v", file.size, h.timeout))
	defer cancel()
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	case <-ctx.Done():
		h.finish(file, r, "", context.Cause(ctx))
		return
	}
	sum, err := hashFile(ctx, file, fd)
	h.finish(file, r, sum, err)
}

// finish tells those who wait, and keeps the digest if there is one that can
// be relied on later.
func (h *hashes) finish(file fileID, r *hashing, sum string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r.sum, r.err = sum, err
	delete(h.running, file)
	defer close(r.done)
	if err != nil || !settled(file, time.Now()) {
		return
	}
	h.kept[file] = h.recent.PushFront(&digest{file, sum})
	if h.recent.Len() > h.keep {
		delete(h.kept, h.recent.Remove(h.recent.Back()).(*digest).file)
	}
}

// settled reports whether a further change of the file would show in its
// ctime. The clock of a file system stands still between ticks: of the kernel,
// at most 10 ms apart, or of the medium, up to 2 s on some, whose stamps have
// no fraction of a second. A change within the tick of the last one leaves no
// trace.
func settled(file fileID, now time.Time) bool {
	tick := 20 * time.Millisecond
	if file.ctime.Nsec == 0 {
		tick = 2 * time.Second
	}
	return now.Sub(time.Unix(file.ctime.Sec, int64(file.ctime.Nsec))) > 2*tick
}

// blocks are the buffers to hash through.
var blocks = sync.Pool{New: func() any { return new([128 << 10]byte) }}

func hashFile(ctx context.Context, file fileID, fd int) (string, error) {
	if err := checkFile(file, fd); err != nil {
		return "", err
	}
	block := blocks.Get().(*[128 << 10]byte)
	defer blocks.Put(block)
	sum := sha256.New()
	var total uint64
	for {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
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

// checkFile returns an error unless fd is the file, in that state, and of a
// kind that shows everybody the same contents.
func checkFile(file fileID, fd int) error {
	var st unix.Statx_t
	if err := statx(fd, "", unix.AT_EMPTY_PATH, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.New("not a regular file")
	}
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
