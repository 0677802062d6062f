package state

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// holdDir makes a process of the test program one that holds a directory.
const holdDir = "TEST_HOLD_DIR"

func TestMain(m *testing.M) {
	if path := os.Getenv(holdDir); path != "" {
		if _, err := Open(path); err != nil {
			os.Stdout.WriteString(err.Error())
			os.Exit(1)
		}
		os.Stdout.WriteString("held")
		os.Stdin.Read(make([]byte, 1)) // until the test ends it
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func open1(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestLoadReturnsWhatSaveWrote(t *testing.T) {
	t.Parallel()
	d := open1(t, t.TempDir())
	for _, data := range [][]byte{{}, []byte("x"), []byte("two\nlines\n"), bytes.Repeat([]byte{0}, 1<<20)} {
		if err := d.Save("name", 3, data); err != nil {
			t.Fatal(err)
		}
		got, version, err := d.Load("name", 5)
		if err != nil || version != 3 || !bytes.Equal(got, data) {
			t.Errorf("Load = %d bytes, version %d, %v; want %d bytes of version 3", len(got), version, err, len(data))
		}
	}
	left, err := os.ReadDir(d.Path(""))
	if err != nil || len(left) != 1 {
		t.Errorf("%d files in the directory, want 1 (%v)", len(left), err)
	}
	info, err := os.Stat(d.Path("name"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600 (%v)", info.Mode(), err)
	}
}

func TestMissingFileIsToldApart(t *testing.T) {
	t.Parallel()
	d := open1(t, t.TempDir())
	if _, _, err := d.Load("name", 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load = %v, want fs.ErrNotExist", err)
	}
}

func TestDamagedFileIsNamedAndLeftAlone(t *testing.T) {
	t.Parallel()
	d := open1(t, t.TempDir())
	if err := d.Save("name", 1, []byte("contents")); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(d.Path("name"))
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, b []byte) {
		t.Helper()
		if err := os.WriteFile(d.Path("name"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := d.Load("name", 9)
		if err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), d.Path("name")) {
			t.Errorf("%s: Load = %v, want an error that names the file", what, err)
		}
		if after, _ := os.ReadFile(d.Path("name")); !bytes.Equal(after, b) {
			t.Errorf("%s: the file was changed", what)
		}
	}
	for i := range whole {
		flipped := bytes.Clone(whole)
		flipped[i] ^= 1
		refused("a flipped bit", flipped)
		refused("a cut", whole[:i])
	}
	refused("more", append(bytes.Clone(whole), 'x'))
}

func TestFileOfAnotherNameIsRefused(t *testing.T) {
	t.Parallel()
	d := open1(t, t.TempDir())
	if err := d.Save("one", 1, []byte("contents")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(d.Path("one"), d.Path("other")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.Load("other", 1); err == nil {
		t.Error("a file was taken for another")
	}
}

func TestNewerVersionIsRefused(t *testing.T) {
	t.Parallel()
	d := open1(t, t.TempDir())
	if err := d.Save("name", 2, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.Load("name", 1); err == nil || !strings.Contains(err.Error(), "newer vouchd") {
		t.Errorf("Load = %v, want one that says to install the newer vouchd", err)
	}
}

func TestFailedSaveLeavesTheOldContents(t *testing.T) {
	t.Parallel()
	d := open1(t, t.TempDir())
	if err := d.Save("name", 1, []byte("old")); err != nil {
		t.Fatal(err)
	}
	if err := d.Save("name", 1, make([]byte, MaxFileLen)); err == nil {
		t.Error("a file of any size was taken")
	}
	got, _, err := d.Load("name", 1)
	if err != nil || string(got) != "old" {
		t.Errorf("Load = %q, %v, want the old contents", got, err)
	}
}

func TestOneOwnerAtATime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), holdDir+"="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, 4)
	if _, err := out.Read(said); err != nil || string(said) != "held" {
		t.Fatalf("the other process said %q, %v", said, err)
	}
	if d, err := Open(dir); !errors.Is(err, ErrInUse) {
		t.Errorf("Open = %v, %v, want ErrInUse", d, err)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	open1(t, dir) // the lock ended with the process
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		prepare func(path string) error
		want    string
	}{
		{"a directory that others may write to", func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chmod(p, 0o770)) }, "chmod 0700"},
		{"a directory of somebody else", func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chown(p, 65534, 65534)) }, "belongs to user 65534"},
		{"a file", func(p string) error { return os.WriteFile(p, nil, 0o600) }, "not a directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if os.Geteuid() != 0 && strings.Contains(tt.name, "somebody") {
				t.Skip("giving a directory away needs root")
			}
			path := filepath.Join(t.TempDir(), "state")
			if err := tt.prepare(path); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(path); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open = %v, want %q", err, tt.want)
			}
		})
	}
}

func FuzzUnseal(f *testing.F) {
	f.Add(seal([]byte("contents"), "name", 1))
	f.Add([]byte("vouchd name 1 sha256:00\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		data, version, err := open(b, "name")
		if err == nil && !bytes.Equal(seal(data, "name", version), b) {
			t.Errorf("accepted %q, which Save does not write", b)
		}
	})
}
