package programs

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestStreamsThatSystemdCouldWaitFor(t *testing.T) {
	t.Parallel()
	open := func(path string) *os.File {
		f, err := os.Open(path)
		must(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	memory, err := unix.MemfdCreate("x", 0) // on a tmpfs
	must(t, err)
	file := os.NewFile(uintptr(memory), "memory")
	defer file.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	must(t, err)
	defer l.Close()
	local, err := l.File()
	must(t, err)
	defer local.Close()
	lt, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(t, err)
	defer lt.Close()
	network, err := lt.File()
	must(t, err)
	defer network.Close()
	epoll, err := unix.EpollCreate1(0)
	must(t, err)
	anonymous := os.NewFile(uintptr(epoll), "epoll")
	defer anonymous.Close()
	for _, tt := range []struct {
		name string
		file *os.File
		want string
	}{
		{"device", open(os.DevNull), ""},
		{"pipe", w, ""},
		{"file in memory", file, ""},
		{"local socket", local, ""},
		{"socket of the network", network, "is a network socket"},
		{"file of a file system that is not known to be local", open("/proc/self/status"), "may wait for a server"},
		{"directory", open("/"), "is neither a terminal"},
		{"what is no file", anonymous, "is neither a terminal"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := checkStreams([]*os.File{r, tt.file, w})
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), "standard output is ") || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got error %v, want %q", err, tt.want)
			}
		})
	}
	if checkStreams(nil) == nil || checkStreams([]*os.File{r, w}) == nil {
		t.Error("fewer than three descriptors are enough")
	}
}
