package credentialapi

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/secret"
)

// What takes systemd as PID 1 is in packaging/test/secrets.

func TestNameOfTheConnectingSocketSaysUnitAndCredential(t *testing.T) {
	t.Parallel()
	for name, want := range map[string][3]string{
		"adf9d86b6eda275e/unit/foobar.service/credx":    {"foobar.service", "credx", ""},
		"1/unit/agent@7.service/warehouse@url":          {"agent@7.service", "warehouse", "url"},
		"1/unit/x.service/a@b@c":                        {"x.service", "a", "b@c"},
		"1/unit/x.service/":                             {},
		"1/unit//credx":                                 {},
		"/unit/x.service/credx":                         {},
		"1/user/x.service/credx":                        {},
		"1/unit/x.service":                              {},
		"1/unit/x.service/credx/more":                   {},
		"1/unit/x.service/\xff":                         {},
		"1/unit/x.service\n/credx":                      {},
		"":                                              {},
		"1/system.slice/unit/x.service/unit/x.service/": {},
	} {
		unit, credential, field, err := splitUnitName(name)
		if got := [3]string{unit, credential, field}; got != want || (err == nil) != (want[0] != "") || err != nil && !errors.Is(err, errNotManager) {
			t.Errorf("%q is %q, %v; want %q", name, got, err, want)
		}
	}
}

func FuzzNameOfTheConnectingSocket(f *testing.F) {
	f.Add("adf9d86b6eda275e/unit/foobar.service/credx@field")
	f.Fuzz(func(t *testing.T, name string) {
		unit, credential, field, err := splitUnitName(name)
		if err != nil {
			return
		}
		if unit == "" || strings.ContainsAny(unit+credential+field, "/\n") || !strings.HasSuffix(name, "/unit/"+unit+"/"+credential) && field == "" && !strings.HasSuffix(name, "@") {
			t.Errorf("%q gives %q, %q, %q", name, unit, credential, field)
		}
	})
}

// A path that begins with "@" prints as an abstract name does.
func TestPathOfAFileIsNoAbstractName(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "l"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.MkdirAll("@1/unit/x.service", 0o755); err != nil {
		t.Fatal(err)
	}
	const name = "1/unit/x.service/credx"
	for _, tt := range []struct {
		bound, want string
		fails       bool
	}{
		{"\x00" + name, name, false},
		{"@" + name, "", true},
		{"", "", true},
	} {
		client := connectAs(t, tt.bound, filepath.Join(dir, "l"))
		conn, err := l.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		got, err := peerName(conn)
		if got != tt.want || (err != nil) != tt.fails {
			t.Errorf("a socket that is bound to %q is named %q, %v", tt.bound, got, err)
		}
		unix.Close(client)
		conn.Close()
	}
}

// connectAs binds exactly those bytes, which neither net nor unix does, and
// connects.
func connectAs(t *testing.T, bound, path string) (fd int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if bound != "" {
		addr := unix.RawSockaddrUnix{Family: unix.AF_UNIX}
		for i := range bound {
			addr.Path[i] = int8(bound[i])
		}
		size := unsafe.Offsetof(addr.Path) + uintptr(len(bound))
		if _, _, errno := unix.Syscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&addr)), size); errno != 0 {
			t.Fatal(errno)
		}
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestFileOfAUnitHoldsOneFieldOrAllInJSON(t *testing.T) {
	t.Parallel()
	field := func(name, value string) credential.Field {
		return credential.Field{Name: name, Value: secret.Of([]byte(value))}
	}
	login := []credential.Field{field("username", "u"), field("password", "<p>")}
	for _, tt := range []struct {
		name   string
		fields []credential.Field
		field  string
		want   string
		fails  bool
	}{
		{"the only one", []credential.Field{field("value", "a\x00b\n")}, "", "a\x00b\n", false},
		{"the only one by name", []credential.Field{field("value", "v")}, "value", "v", false},
		{"one of several", login, "password", "<p>", false},
		{"all of several", login, "", `{"password":"<p>","username":"u"}` + "\n", false},
		{"one that is not there", login, "url", "", true},
		{"bytes that JSON cannot hold", []credential.Field{field("a", "\xff"), field("b", "b")}, "", "", true},
		{"as much as systemd takes", []credential.Field{field("value", strings.Repeat("x", maxCredential))}, "", strings.Repeat("x", maxCredential), false},
		{"more than systemd takes", []credential.Field{field("value", strings.Repeat("x", maxCredential+1))}, "", "", true},
	} {
		got, err := unitValue(&credential.Grant{Fields: tt.fields}, tt.field)
		if string(got) != tt.want || (err != nil) != tt.fails {
			t.Errorf("%s: %d bytes %.40q, %v", tt.name, len(got), got, err)
		}
	}
}
