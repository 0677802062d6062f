package process

import (
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// exits tells peers that their processes have exited.
var exits exitWatcher

// An exitWatcher waits for any number of pidfds with one goroutine and no
// thread: the pidfds are in an epoll instance, and that one is itself in the
// runtime's poller. Goroutine and instance exist while a peer is watched.
//
// Lock order: Peer.mu, then mu.
type exitWatcher struct {
	mu    sync.Mutex // guards the fields below
	epoll *os.File   // nil while no peer is watched
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
	if w.epoll == nil {
		if err := w.start(); err != nil {
			return err
		}
	}
	w.peers[key] = p
	err := control(w.epoll, unix.EPOLL_CTL_ADD, p.pidfd, &unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLONESHOT,
		Fd:     int32(key),
		Pad:    int32(key >> 32),
	})
	if err != nil {
		delete(w.peers, key)
		w.stopIfIdle()
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
	w.epoll = os.NewFile(uintptr(fd), "exits")
	w.peers = make(map[uint64]*Peer)
	go w.run(w.epoll)
	return nil
}

// run closes the done channels of peers that exit until epoll is closed.
func (w *exitWatcher) run(epoll *os.File) {
	raw, err := epoll.SyscallConn()
	if err != nil {
		return // closed already
	}
	var events [64]unix.EpollEvent
	for {
		var n int
		var waitErr error
		err := raw.Read(func(fd uintptr) bool {
			n, waitErr = unix.EpollWait(int(fd), events[:], 0)
			return n != 0 // nothing yet: wait
		})
		if err != nil || waitErr != nil {
			return
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
	if w.epoll == nil {
		return
	}
	// An error means that the pidfd is not there any more: p exited, or was
	// never added.
	_ = control(w.epoll, unix.EPOLL_CTL_DEL, p.pidfd, nil)
	delete(w.peers, p.watched)
	w.stopIfIdle()
}

// stopIfIdle ends the goroutine when nobody is watched. Peers that exited are
// no longer in peers though still open, so the next watch starts it anew.
func (w *exitWatcher) stopIfIdle() {
	if len(w.peers) == 0 {
		w.epoll.Close()
		w.epoll = nil
	}
}

func control(epoll *os.File, op, pidfd int, e *unix.EpollEvent) error {
	raw, err := epoll.SyscallConn()
	if err != nil {
		return err
	}
	var ctlErr error
	err = raw.Control(func(fd uintptr) {
		ctlErr = unix.EpollCtl(int(fd), op, pidfd, e)
	})
	return errors.Join(err, ctlErr)
}
