package config

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	quiet    = 20 * time.Millisecond  // without events, after which a burst is over
	patience = 50 * time.Millisecond  // after a burst's first event, whatever follows
	rescan   = time.Second            // between attempts while the kernel gives no watch
	reread   = 100 * time.Millisecond // while a file is open for writing; no event reports its close

	// maxWatches bounds the directories of one watch; the kernel's bound is
	// per user (inotify(7)).
	maxWatches = 4096
)

// Watch calls changed whenever what the paths lead to may have changed: files, or
// directories with what they directly hold. It watches every directory and symbolic
// link on the way, so it notices a file replaced by rename, a link swapped as
// configuration managers and Kubernetes do it, and a directory that appears later. A
// burst of events is one call, 20 ms after its last event and at most 50 ms after its
// first.
//
// While another process has a file open for writing, which [ReadFile] refuses, the
// calls continue until it is closed.
//
// The first call comes as soon as the watch is set up, so no change since the caller
// last read is missed. If the watch fails, the paths are assumed to have changed,
// once a second until it works again. A call does not mean that anything did change.
//
// Watch returns nil when ctx ends and an error if the watch cannot be set up at the
// start. All calls are on the goroutine that called Watch.
func Watch(ctx context.Context, paths []string, changed func()) error {
	w, err := newWatch(paths)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		before := unfinished(paths)
		changed()
		if before || unfinished(paths) {
			wait(ctx, reread)
		} else {
			waitForBurst(ctx, w)
		}
		// The new watch stands before the old one goes and before anybody
		// reads, so every later change meets a watch.
		next, err := newWatch(paths)
		if err != nil {
			next = nil
		}
		w.close()
		w = next
	}
	w.close()
	return nil
}

// waitForBurst returns when a burst of events is over, or, without a watch,
// when it is time to look again.
func waitForBurst(ctx context.Context, w *watch) {
	if w == nil {
		wait(ctx, rescan)
		return
	}
	if !w.next(ctx, nil) {
		return
	}
	end := time.After(patience)
	for {
		pause, cancel := context.WithTimeout(ctx, quiet)
		more := w.next(pause, end)
		cancel()
		if !more {
			return
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// A watch is one set of kernel watches.
type watch struct {
	fs   *fsnotify.Watcher
	dirs map[string]*names // by the real path of a directory that is watched
}

// names are those in a directory that matter.
type names struct {
	all bool
	one map[string]bool
}

func newWatch(paths []string) (*watch, error) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watching configuration: %w; if it is too many files, raise fs.inotify.max_user_instances", err)
	}
	w := &watch{fs: watcher, dirs: make(map[string]*names)}
	for _, p := range paths {
		abs, err := filepath.Abs(p)
		if err == nil {
			err = w.follow(abs)
		}
		if err != nil {
			w.close()
			return nil, fmt.Errorf("watching %s: %w", p, err)
		}
	}
	return w, nil
}

// close releases the kernel's watches; nil has none.
func (w *watch) close() {
	if w != nil {
		w.fs.Close()
	}
}

// follow watches what decides where path leads, and what a directory at its end
// holds. Each directory is watched before it is read. A path that ends early, in
// something missing or unreadable, is watched up to there: that is where it will be
// fixed.
func (w *watch) follow(path string) error {
	var watching error
	end, err := walk(path, func(dir, name string) (fs.FileInfo, error) {
		if watching = w.add(dir, name); watching != nil {
			return nil, watching
		}
		return os.Lstat(filepath.Join(dir, name))
	})
	if err != nil || w.dirs[end] != nil && w.dirs[end].all {
		return watching
	}
	if info, err := os.Lstat(end); err != nil || !info.IsDir() {
		return nil
	}
	if err := w.add(end, ""); err != nil {
		return err
	}
	held, err := os.ReadDir(end)
	if err != nil {
		return nil
	}
	for _, entry := range held {
		if entry.Type()&fs.ModeSymlink == 0 {
			continue
		}
		if err := w.follow(filepath.Join(end, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// add watches a directory for one name, or for all where the name is empty.
func (w *watch) add(dir, name string) error {
	n := w.dirs[dir]
	if n == nil {
		if len(w.dirs) == maxWatches {
			return fmt.Errorf("its links lead through more than %d directories", maxWatches)
		}
		err := w.fs.Add(dir)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return nil // told by the directory above, watched before it went
		}
		if err != nil {
			return fmt.Errorf("%w; if it is no space, raise fs.inotify.max_user_watches", err)
		}
		n = &names{one: make(map[string]bool)}
		w.dirs[dir] = n
	}
	n.all = n.all || name == ""
	n.one[name] = true
	return nil
}

// next waits for something that matters and reports whether it came before ctx
// ended and before end, which may be nil. The kernel having dropped events, or
// any other error, matters too.
func (w *watch) next(ctx context.Context, end <-chan time.Time) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case <-end:
			return false
		case _, ok := <-w.fs.Errors:
			return ok
		case event, ok := <-w.fs.Events:
			if !ok || w.matters(event.Name) {
				return ok
			}
		}
	}
}

func (w *watch) matters(path string) bool {
	if w.dirs[path] != nil {
		return true // about a watched directory itself
	}
	in := w.dirs[filepath.Dir(path)]
	return in != nil && (in.all || in.one[filepath.Base(path)])
}
