package process

import (
	"cmp"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// exits tells peers that their processes have exited.
var exits exitWatcher

// An exitWatcher waits for any number of pidfds with one goroutine and no
// thread: the pidfds are in one epoll instance, and that is itself in the
// runtime's poller. Both are there from the first peer that is watched on.
//
// Lock order: Peer.mu, then mu.
type exitWatcher struct {
	mu    sync.Mutex // guards the fields below
	epoll int        // 0 until a peer is watched
	peers map[uint64]*Peer
	next  uint64
}

// watch has p.done closed when p's process exits. The caller holds p.mu. It
// returns the key of the watch; where there can be none, for want of file
// descriptors, p counts as gone at once: a stream that cannot notice its
// process's end must not stay open.
func (w *exitWatcher) watch(p *Peer) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next++
	key := w.next
	if err := w.add(key, p); err != nil {
		close(p.done)
		return key
	}
	return key
}

func (w *exitWatcher) add(key uint64, p *Peer) error {
	if w.epoll == 0 {
		if err := w.start(); err != nil {
			return err
		}
	}
	w.peers[key] = p
	err := unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, p.pidfd, &unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLONESHOT,
		Fd:     int32(key),
		Pad:    int32(key >> 32),
	})
	if err != nil {
		delete(w.peers, key)
	}
	return err
}

func (w *exitWatcher) start() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil { // so that os.NewFile uses the poller
		unix.Close(fd)
		return err
	}
	w.epoll = fd
	w.peers = make(map[uint64]*Peer)
	go w.run(os.NewFile(uintptr(fd), "exits"))
	return nil
}

// run closes the done channels of peers that exit.
func (w *exitWatcher) run(epoll *os.File) {
	raw, err := epoll.SyscallConn()
	if err != nil {
		panic("epoll: " + err.Error()) // it is never closed
	}
	var events [64]unix.EpollEvent
	for {
		var n int
		var waitErr error
		err := raw.Read(func(fd uintptr) bool {
			n, waitErr = unix.EpollWait(int(fd), events[:], 0)
			return n != 0 // nothing yet: wait
		})
		if waitErr == unix.EINTR {
			continue
		}
		if err = cmp.Or(err, waitErr); err != nil {
			panic("epoll: " + err.Error())
		}
		w.mu.Lock()
		for _, e := range events[:n] {
			key := uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32
			if p := w.peers[key]; p != nil {
				delete(w.peers, key)
				close(p.done)
			}
		}
		w.mu.Unlock()
	}
}

// forget ends the watch of p. The caller holds p.mu.
func (w *exitWatcher) forget(p *Peer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	// An error means that the pidfd was never added. Closed, it is out in any case.
	_ = unix.EpollCtl(w.epoll, unix.EPOLL_CTL_DEL, p.pidfd, nil)
	delete(w.peers, p.watched)
}
