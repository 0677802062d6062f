package process

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"

	"github.com/fsnotify/fsnotify"
)

// maxWatchedDirs bounds the directories of one tree that are watched; changes
// in others are noticed when the process is attested next.
const maxWatchedDirs = 2048

// A Watcher tells when files change that attestations rest on. Many who watch
// one file cost one watch. Its methods are safe for concurrent use.
type Watcher struct {
	notify *fsnotify.Watcher
	ended  chan struct{}

	mu   sync.Mutex // guards dirs and what it holds
	dirs map[string]map[*Watch]bool
}

// A Watch is one who waits for changes.
type Watch struct {
	watcher *Watcher
	changed chan struct{}
	names   map[string]bool // full paths of files
	trees   map[string]bool // directories, any entry of which counts
	dirs    []string        // all that are watched
}

// NewWatcher returns a Watcher, which the caller closes.
func NewWatcher() (*Watcher, error) {
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watching files: %w", err)
	}
	w := &Watcher{notify: notify, ended: make(chan struct{}), dirs: make(map[string]map[*Watch]bool)}
	go w.run()
	return w, nil
}

// Close ends all watches. Their channels stay open.
func (w *Watcher) Close() error {
	err := w.notify.Close()
	<-w.ended
	return err
}

// Watch begins to watch the files that an attestation rests on. Whoever wants
// to miss nothing watches first, then attests again and compares. An error
// means that not everything is watched, for want of inotify watches
// (fs.inotify.max_user_watches); the Watch is good for the rest and has to be
// closed all the same.
func (w *Watcher) Watch(at *Attested) (*Watch, error) {
	watch := &Watch{
		watcher: w,
		changed: make(chan struct{}, 1),
		names:   make(map[string]bool),
		trees:   make(map[string]bool),
	}
	var first error
	add := func(dir string) {
		if err := w.add(dir, watch); err != nil && first == nil {
			first = fmt.Errorf("watching %s: %w", dir, err)
		}
	}
	for _, path := range at.Files {
		watch.names[path] = true
		add(filepath.Dir(path)) // a file that is replaced is another one
	}
	for _, root := range at.Trees {
		for _, dir := range directoriesOf(root) {
			watch.trees[dir] = true
			add(dir)
		}
	}
	return watch, first
}

// directoriesOf returns the directories of a tree, as many as are watched.
func directoriesOf(root string) (dirs []string) {
	filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil // the attestation says so
		case e.IsDir() && len(dirs) == maxWatchedDirs:
			return filepath.SkipAll
		case e.IsDir():
			dirs = append(dirs, path)
		}
		return nil
	})
	return dirs
}

func (w *Watcher) add(dir string, watch *Watch) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dirs[dir] == nil {
		if err := w.notify.Add(dir); err != nil {
			return err
		}
		w.dirs[dir] = make(map[*Watch]bool)
	}
	if !w.dirs[dir][watch] {
		w.dirs[dir][watch] = true
		watch.dirs = append(watch.dirs, dir)
	}
	return nil
}

// Changed returns a channel that receives after each change, once for several
// in a row.
func (watch *Watch) Changed() <-chan struct{} { return watch.changed }

// Close ends the watch.
func (watch *Watch) Close() {
	w := watch.watcher
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, dir := range watch.dirs {
		if delete(w.dirs[dir], watch); len(w.dirs[dir]) == 0 {
			delete(w.dirs, dir)
			_ = w.notify.Remove(dir) // it may be gone
		}
	}
	watch.dirs = nil
}

func (w *Watcher) run() {
	defer close(w.ended)
	for {
		select {
		case e, ok := <-w.notify.Events:
			if !ok {
				return
			}
			w.tell(e.Name)
		case _, ok := <-w.notify.Errors:
			if !ok {
				return
			}
			w.tell("") // events were lost: anything may have changed
		}
	}
}

// tell tells those who watch the path, or everybody if it is empty.
func (w *Watcher) tell(path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if path == "" {
		for _, watches := range w.dirs {
			for watch := range watches {
				watch.tell()
			}
		}
		return
	}
	dir := filepath.Dir(path)
	for watch := range w.dirs[dir] {
		if watch.names[path] || watch.trees[dir] {
			watch.tell()
		}
	}
	for watch := range w.dirs[path] { // the directory itself
		watch.tell()
	}
}

func (watch *Watch) tell() {
	select {
	case watch.changed <- struct{}{}:
	default: // told already
	}
}
