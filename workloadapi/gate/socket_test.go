package gate

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestListen(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		prepare func(t *testing.T, path string)
		want    string // in the error
	}{
		{"nothing there", func(*testing.T, string) {}, ""},
		{"directory missing", func(t *testing.T, path string) { must(t, os.Remove(filepath.Dir(path))) }, ""},
		{"socket of a crashed daemon", crashedSocket, ""},
		{"socket of a live daemon", func(t *testing.T, path string) {
			l, err := net.Listen("unix", path)
			must(t, err)
			t.Cleanup(func() { l.Close() })
		}, "another daemon answers on it"},
		{"file", func(t *testing.T, path string) { must(t, os.WriteFile(path, nil, 0o600)) }, "there is a file of that name"},
		{"directory", func(t *testing.T, path string) { must(t, os.Mkdir(path, 0o700)) }, "there is a directory of that name"},
		{"fifo", func(t *testing.T, path string) { must(t, unix.Mkfifo(path, 0o600)) }, "there is a special file of that name"},
		{"symbolic link to a socket", func(t *testing.T, path string) {
			crashedSocket(t, path+"2")
			must(t, os.Symlink(path+"2", path))
		}, "there is a symbolic link of that name"},
		{"symbolic link to nothing", func(t *testing.T, path string) { must(t, os.Symlink(path+"2", path)) }, "there is a symbolic link of that name"},
		{"directory that others may write to", func(t *testing.T, path string) {
			must(t, os.Chmod(filepath.Dir(path), 0o777))
		}, "others may write to directory"},
		{"socket of another user", func(t *testing.T, path string) {
			if os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			crashedSocket(t, path)
			must(t, os.Lchown(path, 65534, 65534))
		}, "belongs to user 65534"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "run", "agent.sock")
			must(t, os.Mkdir(filepath.Dir(path), 0o755))
			tt.prepare(t, path)
			before, _ := os.Lstat(path)
			l, err := ListenAt(path, 0o666)
			if tt.want != "" {
				if err == nil {
					l.Close()
				}
				if got := fmt.Sprint(err); !strings.Contains(got, tt.want) || !strings.Contains(got, path) {
					t.Errorf("got error %v, want %q", err, tt.want)
				}
				if after, _ := os.Lstat(path); before != nil && (after == nil || !os.SameFile(before, after)) {
					t.Error("what was there is gone")
				}
				return
			}
			must(t, err)
			info, err := os.Lstat(path)
			must(t, err)
			if got := info.Mode().Perm(); got != 0o666 {
				t.Errorf("socket has mode %04o, want 0666", got)
			}
			dir, err := os.Stat(filepath.Dir(path))
			must(t, err)
			if got := dir.Mode().Perm(); got != 0o755 {
				t.Errorf("directory has mode %04o, want 0755", got)
			}
			must(t, l.Close())
			if _, err := os.Lstat(path); err == nil {
				t.Error("the socket stays after Close")
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// crashedSocket leaves a socket that nobody listens on.
func crashedSocket(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	l.SetUnlinkOnClose(false)
	must(t, l.Close())
}

func TestSocketPathThatIsTooLong(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	longest := filepath.Join(dir, strings.Repeat("x", maxSocketPath-len(dir)-1))
	l, err := ListenAt(longest, 0o666)
	must(t, err)
	must(t, l.Close())
	if l, err := ListenAt(longest+"x", 0o666); err == nil {
		l.Close()
		t.Error("a path of 108 bytes is taken")
	} else if !strings.Contains(err.Error(), "108 bytes") {
		t.Errorf("got error %v, want one that says how long it is", err)
	}
}

func TestAdoptedListenerKeepsItsSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	must(t, adopt(l))
	must(t, l.Close())
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the socket is systemd's to remove: %v", err)
	}
}

func TestSocketFromSystemdIsWhereTheConfigurationSays(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "agent.sock")
	for _, tt := range []struct {
		name, path, want string
	}{
		{"at its path", path, ""},
		{"elsewhere", path + "2", "agent_socket is " + path + "2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			passed, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			defer os.Remove(path) // as systemd would
			defer passed.Close()
			_, err = listenOr(passed, "agent_socket", tt.path, 0o666)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
