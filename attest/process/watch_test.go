package process

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestWatch(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, dir string)
		told   bool
	}{
		{"file overwritten", func(t *testing.T, dir string) { must(t, os.WriteFile(dir+"/file", []byte("y"), 0o644)) }, true},
		{"file replaced", func(t *testing.T, dir string) {
			must(t, os.WriteFile(dir+"/new", []byte("y"), 0o644))
			must(t, os.Rename(dir+"/new", dir+"/file"))
		}, true},
		{"file removed", func(t *testing.T, dir string) { must(t, os.Remove(dir+"/file")) }, true},
		{"file given other permissions", func(t *testing.T, dir string) { must(t, os.Chmod(dir+"/file", 0o666)) }, true},
		{"another file", func(t *testing.T, dir string) { must(t, os.WriteFile(dir+"/other", nil, 0o644)) }, false},
		{"file deep in the tree", func(t *testing.T, dir string) {
			must(t, os.WriteFile(dir+"/tree/lib/agent.py", []byte("y"), 0o644))
		}, true},
		{"new file in the tree", func(t *testing.T, dir string) { must(t, os.WriteFile(dir+"/tree/lib/x.py", nil, 0o644)) }, true},
		{"directory with the file renamed", func(t *testing.T, dir string) {
			must(t, os.Rename(dir, dir+"2"))
			t.Cleanup(func() { os.RemoveAll(dir + "2") })
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			must(t, os.WriteFile(dir+"/file", []byte("x"), 0o644))
			must(t, os.MkdirAll(dir+"/tree/lib", 0o755))
			must(t, os.WriteFile(dir+"/tree/lib/agent.py", []byte("x"), 0o644))
			w, err := NewWatcher()
			must(t, err)
			defer w.Close()
			at := &Attested{Files: []string{dir + "/file"}, Trees: []string{dir + "/tree"}}
			first, err := w.Watch(at)
			must(t, err)
			closed, err := w.Watch(at)
			must(t, err)
			closed.Close()
			tt.change(t, dir)
			// Events come in order: once this one is told, the others were.
			last, err := w.Watch(&Attested{Files: []string{w.sentinel(t)}})
			must(t, err)
			for name := range last.names {
				must(t, os.WriteFile(name, nil, 0o644))
			}
			receive(t, last)
			select {
			case <-first.Changed():
				if !tt.told {
					t.Error("told of a change of another file")
				}
			default:
				if tt.told {
					t.Error("not told of the change")
				}
			}
			select {
			case <-closed.Changed():
				t.Error("told after Close")
			default:
			}
			first.Close()
			last.Close()
			if dirs := w.notify.WatchList(); len(dirs) != 0 {
				t.Errorf("%q are still watched", dirs)
			}
		})
	}
}

func (w *Watcher) sentinel(t *testing.T) string { return filepath.Join(t.TempDir(), "sentinel") }

func receive(t *testing.T, w *Watch) {
	t.Helper()
	select {
	case <-w.Changed():
	case <-time.After(10 * time.Second):
		t.Fatal("not told of a change within 10 s")
	}
}

func TestManyWatchesOfOneFileAreOne(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, []byte("x"), 0o644))
	w, err := NewWatcher()
	must(t, err)
	defer w.Close()
	var watches []*Watch
	for range 1000 {
		watch, err := w.Watch(&Attested{Files: []string{path}})
		must(t, err)
		watches = append(watches, watch)
	}
	if n := len(w.notify.WatchList()); n != 1 {
		t.Errorf("%d directories are watched, want 1", n)
	}
	must(t, os.WriteFile(path, []byte("y"), 0o644))
	for _, watch := range watches {
		receive(t, watch)
		watch.Close()
	}
}

func TestWatchOfWhatIsNotThere(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, []byte("x"), 0o644))
	w, err := NewWatcher()
	must(t, err)
	defer w.Close()
	watch, err := w.Watch(&Attested{Files: []string{"/nowhere/file", path}, Trees: []string{"/nowhere/tree"}})
	if err == nil {
		t.Error("a file in a directory that does not exist is watched")
	}
	must(t, os.WriteFile(path, []byte("y"), 0o644))
	receive(t, watch) // the rest is
	watch.Close()
}
