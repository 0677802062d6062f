package config

import (
	"context"
	"fmt"
	"math/rand/v2"
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
		prepare []step
		steps   []step
	}{
		{"a file that is written in place, made, and removed", plainDir, []step{
			put("etc/entries.d/a.yaml"), put("etc/entries.d/b.yaml"), remove("etc/entries.d/a.yaml"),
		}},
		{"a file that is replaced by rename, twice", plainDir, []step{
			replace("etc/entries.d/a.yaml"), replace("etc/entries.d/a.yaml"),
		}},
		{"a mode that is mended", plainDir, []step{
			func(dir string) error { return os.Chmod(dir+"/etc/entries.d/a.yaml", 0o600) },
		}},
		{"a directory that appears later, level by level", nil, []step{
			makeDir("etc"), makeDir("etc/entries.d"), put("etc/entries.d/a.yaml"),
		}},
		{"a directory that is removed and comes back", plainDir, []step{
			remove("etc/entries.d"), makeDir("etc/entries.d"), put("etc/entries.d/a.yaml"),
		}},
		{"a directory that another takes the place of", plainDir, []step{
			func(dir string) error { return os.Rename(dir+"/etc/entries.d", dir+"/old") },
			put("etc/entries.d/new.yaml"), put("etc/entries.d/new.yaml"),
		}},
		{"Kubernetes's swap of ..data, twice", []step{
			put("etc/entries.d/..v0/a.yaml"), swap("etc/entries.d/..data", "..v0"), swap("etc/entries.d/a.yaml", "..data/a.yaml"),
			put("etc/entries.d/..v1/a.yaml"), put("etc/entries.d/..v2/a.yaml"),
		}, []step{
			swap("etc/entries.d/..data", "..v1"), put("etc/entries.d/..v1/a.yaml"), swap("etc/entries.d/..data", "..v2"), put("etc/entries.d/b.yaml"),
		}},
		{"a linked directory: its target's files, and the links", []step{
			put("releases/1/a.yaml"), put("releases/2/a.yaml"), swap("current", "releases/1"), swap("etc/entries.d", "../current"),
		}, []step{
			put("releases/1/a.yaml"), swap("current", "releases/2"), put("releases/2/a.yaml"), swap("etc/entries.d", "../releases/1"), put("releases/1/a.yaml"),
		}},
		{"the target of a linked file, and of a link that leads nowhere yet", []step{
			put("elsewhere/a.yaml"), swap("etc/entries.d/a.yaml", "../../elsewhere/a.yaml"), swap("etc/entries.d/b.yaml", "../../later/b.yaml"),
		}, []step{
			put("elsewhere/a.yaml"), put("later/b.yaml"), put("later/b.yaml"),
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for _, step := range tt.prepare {
				must(t, step(dir))
			}
			calls := startWatch(t, filepath.Join(dir, "etc/entries.d"))
			for i, step := range tt.steps {
				must(t, step(dir))
				if !calls.seen() {
					t.Fatalf("step %d was not told", i)
				}
			}
		})
	}
}

// However changes follow each other, a call comes that sees the last of them.
func TestWatchSeesTheEndOfAnyRunOfChanges(t *testing.T) {
	t.Parallel()
	steps := []step{
		put("etc/entries.d/a.yaml"), put("etc/entries.d/b.yaml"), replace("etc/entries.d/a.yaml"),
		put("v1/a.yaml"), put("v2/a.yaml"), replace("v1/a.yaml"),
		remove("etc/entries.d/a.yaml"), remove("etc/entries.d"), remove("etc"), remove("v1"), remove("current"),
		swap("current", "v1"), swap("current", "v2"), swap("etc/entries.d", "../current"), swap("etc/entries.d/a.yaml", "../../current/a.yaml"),
	}
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			dir, random := t.TempDir(), rand.New(rand.NewPCG(seed, 0))
			calls := startWatch(t, filepath.Join(dir, "etc/entries.d"))
			for range 20 {
				var trace []int
				for range 1 + random.IntN(10) {
					i := random.IntN(len(steps))
					trace = append(trace, i)
					steps[i](dir) // some can't be done where others left off
				}
				if !calls.seen() {
					t.Fatalf("the end of steps %v was not told", trace)
				}
			}
		})
	}
}

func TestWatchTellsOfAFileByItsName(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	calls := startWatch(t, filepath.Join(dir, "vouchd.yaml"))
	must(t, put("other.yaml")(dir))
	must(t, put("vouchd.yaml")(dir))
	if !calls.seen() {
		t.Fatal("the file's appearance was not told")
	}
	must(t, replace("vouchd.yaml")(dir))
	if !calls.seen() {
		t.Fatal("the file's replacement was not told")
	}
}

func TestWatchMakesABurstOneCallAndALongOneSome(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, step := range plainDir {
		must(t, step(dir))
	}
	calls := startWatch(t, filepath.Join(dir, "etc/entries.d"))
	began, writes := time.Now(), 0
	for time.Since(began) < 10*patience {
		must(t, put("etc/entries.d/a.yaml")(dir))
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
	for _, step := range plainDir {
		must(t, step(dir))
	}
	w, err := newWatch([]string{filepath.Join(dir, "etc/entries.d")})
	must(t, err)
	w.close()
	waitForBurst(t.Context(), w) // returns, so that Watch makes a new one
}

type step = func(dir string) error

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
	watchUntilDone(t, path, func() { w.calls <- contents(path) })
	w.last = <-w.calls
	return w
}

// watchUntilDone watches path until the test ends.
func watchUntilDone(t *testing.T, path string, changed func()) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- Watch(ctx, []string{path}, changed) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
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

var plainDir = []step{put("etc/entries.d/a.yaml")}

func makeDir(path string) step {
	return func(dir string) error { return os.MkdirAll(filepath.Join(dir, path), 0o755) }
}

// put writes a file that is unlike any before, and makes its directory.
func put(path string) step {
	return func(dir string) error {
		if err := makeDir(filepath.Dir(path))(dir); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, path), fmt.Append(nil, "# ", puts.Add(1)), 0o644)
	}
}

var puts atomic.Int64

func replace(path string) step {
	return func(dir string) error {
		if err := put(path + "~")(dir); err != nil {
			return err
		}
		return os.Rename(filepath.Join(dir, path+"~"), filepath.Join(dir, path))
	}
}

func remove(path string) step {
	return func(dir string) error { return os.RemoveAll(filepath.Join(dir, path)) }
}

// swap makes path a link to target in one step, as configuration managers do.
func swap(path, target string) step {
	return func(dir string) error {
		if err := makeDir(filepath.Dir(path))(dir); err != nil {
			return err
		}
		beside := filepath.Join(dir, path+".new")
		os.Remove(beside) // left where a directory stood in the way
		if err := os.Symlink(target, beside); err != nil {
			return err
		}
		return os.Rename(beside, filepath.Join(dir, path))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
