package config

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Each case prepares a directory, is watched at dir/etc/entries.d, and then
// changes something in one or several steps. After each, a call must come that
// sees what the step has left there.
func TestWatchTells(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		prepare func(t *testing.T, dir string)
		steps   []func(t *testing.T, dir string)
	}{
		{"a file that is written in place, made, and removed", plainDir, []step{
			put("etc/entries.d/a.yaml"), put("etc/entries.d/b.yaml"), remove("etc/entries.d/a.yaml"),
		}},
		{"a file that is replaced by rename, twice", plainDir, []step{
			replace("etc/entries.d/a.yaml"), replace("etc/entries.d/a.yaml"),
		}},
		{"a mode that is mended", plainDir, []step{
			func(t *testing.T, dir string) {
				must(t, os.Chmod(filepath.Join(dir, "etc/entries.d/a.yaml"), 0o600))
			},
		}},
		{"a directory that appears later, level by level", func(*testing.T, string) {}, []step{
			makeDir("etc"), makeDir("etc/entries.d"), put("etc/entries.d/a.yaml"),
		}},
		{"a directory that is removed and comes back", plainDir, []step{
			remove("etc/entries.d"), makeDir("etc/entries.d"), put("etc/entries.d/a.yaml"),
		}},
		{"a directory that another is renamed over", plainDir, []step{
			func(t *testing.T, dir string) {
				must(t, os.Rename(filepath.Join(dir, "etc/entries.d"), filepath.Join(dir, "old")))
				makeDir("etc/entries.d")(t, dir)
			},
			put("etc/entries.d/new.yaml"),
		}},
		{"Kubernetes's swap of ..data, twice", func(t *testing.T, dir string) {
			makeDir("etc/entries.d")(t, dir)
			put("etc/entries.d/..v0/a.yaml")(t, dir)
			swap("etc/entries.d/..data", "..v0")(t, dir)
			swap("etc/entries.d/a.yaml", "..data/a.yaml")(t, dir)
		}, []step{
			func(t *testing.T, dir string) {
				put("etc/entries.d/..v1/a.yaml")(t, dir)
				swap("etc/entries.d/..data", "..v1")(t, dir)
			},
			put("etc/entries.d/..v1/a.yaml"),
			func(t *testing.T, dir string) {
				put("etc/entries.d/..v2/a.yaml")(t, dir)
				swap("etc/entries.d/..data", "..v2")(t, dir)
			},
		}},
		{"a linked directory: its target's files, and the link", func(t *testing.T, dir string) {
			makeDir("etc")(t, dir)
			put("releases/1/a.yaml")(t, dir)
			put("releases/2/a.yaml")(t, dir)
			swap("current", "releases/1")(t, dir)
			swap("etc/entries.d", "../current")(t, dir)
		}, []step{
			put("releases/1/a.yaml"), swap("current", "releases/2"), put("releases/2/a.yaml"), swap("etc/entries.d", "../releases/1"), put("releases/1/a.yaml"),
		}},
		{"the target of a linked file, and of a link that leads nowhere yet", func(t *testing.T, dir string) {
			makeDir("etc/entries.d")(t, dir)
			put("elsewhere/a.yaml")(t, dir)
			swap("etc/entries.d/a.yaml", "../../elsewhere/a.yaml")(t, dir)
			swap("etc/entries.d/b.yaml", "../../later/b.yaml")(t, dir)
		}, []step{
			put("elsewhere/a.yaml"), put("later/b.yaml"), put("later/b.yaml"),
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			tt.prepare(t, dir)
			calls := startWatch(t, filepath.Join(dir, "etc/entries.d"))
			for i, step := range tt.steps {
				step(t, dir)
				if !calls.seen() {
					t.Fatalf("step %d was not told", i)
				}
			}
		})
	}
}

func TestWatchTellsOfAFileByItsName(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	calls := startWatch(t, filepath.Join(dir, "vouchd.yaml"))
	put("other.yaml")(t, dir)
	put("vouchd.yaml")(t, dir)
	if !calls.seen() {
		t.Fatal("the file's appearance was not told")
	}
	replace("vouchd.yaml")(t, dir)
	if !calls.seen() {
		t.Fatal("the file's replacement was not told")
	}
}

func TestWatchMakesABurstOneCallAndALongOneSome(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plainDir(t, dir)
	calls := startWatch(t, filepath.Join(dir, "etc/entries.d"))
	began, writes := time.Now(), 0
	for time.Since(began) < 10*patience {
		put("etc/entries.d/a.yaml")(t, dir)
		writes++
	}
	if !calls.seen() {
		t.Fatal("the last write was not told")
	}
	if most := int(time.Since(began) / quiet); writes < most || calls.count > most {
		t.Errorf("%d calls for %d writes, want at most %d", calls.count, writes, most)
	}
}

func TestWatchOutlivesTheEndOfItsKernelWatch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plainDir(t, dir)
	w, err := newWatch([]string{filepath.Join(dir, "etc/entries.d")})
	must(t, err)
	w.close()
	waitForBurst(t.Context(), w) // returns, so that Watch makes a new one
}

type step = func(t *testing.T, dir string)

// A watched path, and what was there at each call.
type watched struct {
	path  string
	calls chan string
	last  string
	count int // of calls that were looked at
}

// startWatch returns once the watch stands.
func startWatch(t *testing.T, path string) *watched {
	t.Helper()
	w := &watched{path: path, calls: make(chan string, 10_000)}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- Watch(ctx, []string{path}, func() { w.calls <- contents(path) }) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	w.last = <-w.calls
	return w
}

// seen waits for a call that sees what is there now.
func (w *watched) seen() bool {
	now, late := contents(w.path), time.After(10*time.Second)
	for w.last != now {
		select {
		case w.last = <-w.calls:
			w.count++
		case <-late:
			return false
		}
	}
	return true
}

// contents returns the names, modes and bytes of what path holds.
func contents(path string) string {
	var b strings.Builder
	names, err := filepath.Glob(filepath.Join(path, "*"))
	if err != nil {
		panic(err)
	}
	for _, name := range append(names, path) {
		if info, err := os.Stat(name); err == nil {
			data, _ := os.ReadFile(name) // none of a directory
			fmt.Fprintf(&b, "%s %v %q\n", name, info.Mode(), data)
		}
	}
	return b.String()
}

func plainDir(t *testing.T, dir string) {
	makeDir("etc/entries.d")(t, dir)
	put("etc/entries.d/a.yaml")(t, dir)
}

func makeDir(path string) step {
	return func(t *testing.T, dir string) { must(t, os.MkdirAll(filepath.Join(dir, path), 0o755)) }
}

// put writes a file that is unlike any before.
func put(path string) step {
	return func(t *testing.T, dir string) {
		makeDir(filepath.Dir(path))(t, dir)
		must(t, os.WriteFile(filepath.Join(dir, path), fmt.Append(nil, "# ", puts.Add(1)), 0o644))
	}
}

var puts atomic.Int64

func replace(path string) step {
	return func(t *testing.T, dir string) {
		put(path+"~")(t, dir)
		must(t, os.Rename(filepath.Join(dir, path+"~"), filepath.Join(dir, path)))
	}
}

func remove(path string) step {
	return func(t *testing.T, dir string) { must(t, os.RemoveAll(filepath.Join(dir, path))) }
}

// swap makes path a link to target in one step, as configuration managers do.
func swap(path, target string) step {
	return func(t *testing.T, dir string) {
		must(t, os.Symlink(target, filepath.Join(dir, path+".new")))
		must(t, os.Rename(filepath.Join(dir, path+".new"), filepath.Join(dir, path)))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
