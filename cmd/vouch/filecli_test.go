package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// delivered reads what vouch writes as JSON. The file is replaced as a whole: it
// is not there yet, or it is complete.
func delivered(t *testing.T, path string) (l leasetest.Login, ok bool) {
	t.Helper()
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return leasetest.Login{}, false
	}
	must(t, err)
	var view struct{ Fields leasetest.Login }
	if err := json.Unmarshal(b, &view); err != nil || view.Fields.Username == "" || view.Fields.Password == "" {
		t.Fatalf("the file holds %q: %v", b, err)
	}
	return view.Fields, true
}

func TestFileHoldsACredentialOnce(t *testing.T) {
	t.Parallel()
	h, pg := newLeasingHost(t)
	h.Start()
	path := h.Path("login")
	for range 2 { // the second takes the place of the first
		if _, stderr, code := h.Vouch("get", "tides-for-all", "--output", "file", "--path", path,
			"--mode", "0640", "--owner", "nobody", "--group", "65534", "--exec", "echo told >>"+h.Path("told")); code != 0 {
			t.Fatalf("exits %d: %s", code, stderr)
		}
	}
	l, ok := delivered(t, path)
	if !ok {
		t.Fatal("there is no file")
	}
	l.Thief(t, pg)
	info, err := os.Stat(path)
	must(t, err)
	if st := info.Sys().(*syscall.Stat_t); info.Mode() != 0o640 || st.Uid != 65534 || st.Gid != 65534 {
		t.Errorf("the file has mode %v, owner %d and group %d", info.Mode(), st.Uid, st.Gid)
	}
	if told, err := os.ReadFile(h.Path("told")); err != nil || string(told) != "told\n" {
		t.Errorf("of two values, one in the place of another, was told %q, %v", told, err)
	}
	if out, _, _ := h.Vouch("log", "show", "--event", "lease.grant", "--output", "json"); strings.Count(out, `"exposure":"file"`) != 4 {
		t.Errorf("the log does not say that the values are in a file:\n%s", out)
	}
	if _, stderr, code := h.Vouch("get", "tides-for-all", "--output", "file", "--path", path, "--field", "username"); code != 0 {
		t.Fatalf("exits %d: %s", code, stderr)
	}
	if b, err := os.ReadFile(path); err != nil || !matches(`^vouch_tides_for_all_\w+$`, string(b)) {
		t.Errorf("the file of one field holds %q, %v", b, err)
	}
	left, err := filepath.Glob(h.Path(".login*"))
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestFileIsKeptFreshForItsReader(t *testing.T) {
	t.Parallel()
	h, pg := newLeasingHost(t)
	h.StartProcess()
	reader := exec.Command("sh", "-c", `trap 'echo told' HUP; echo reads; while :; do sleep 0.01; done`)
	told := daemontest.NewLines()
	reader.Stdout = told
	must(t, reader.Start())
	read := make(chan error, 1)
	go func() { read <- reader.Wait(); told.Close() }()
	t.Cleanup(func() { reader.Process.Kill(); <-told.Closed() })
	told.Wait(t, "reads")

	path := h.Path("login")
	f := h.Follow("get", "tides", "--ttl", "3s", "--write", path, "--follow", "--signal", "HUP", "--pid", fmt.Sprint(reader.Process.Pid))
	var logins []leasetest.Login
	eventually(t, "three logins were in the file, one after the other", func() bool {
		if l, ok := delivered(t, path); ok && (len(logins) == 0 || l != logins[len(logins)-1]) {
			l.Thief(t, pg)
			logins = append(logins, l)
		}
		return len(logins) == 3
	})
	// The first value is told of too, unless one renewal comes between two looks at the file.
	eventually(t, "the reader was told of two", func() bool { return strings.Count(told.String(), "told") >= 2 })

	// The daemon's end is not the file's.
	h.Kill()
	h.StartProcess()
	eventually(t, "the file has a login of the new daemon's", func() bool {
		l, ok := delivered(t, path)
		return ok && l != logins[2]
	})
	last, _ := delivered(t, path)

	must(t, reader.Process.Kill())
	<-read
	if err := f.Ends(t); err != nil {
		t.Errorf("vouch ends with %v: %s", err, f.Stderr)
	}
	if _, ok := delivered(t, path); ok {
		t.Error("the file outlives its reader")
	}
	session := pg.Admin(t, "postgres")
	eventually(t, "the logins are gone", func() bool {
		var n int
		must(t, session.QueryRow(t.Context(), "SELECT count(*) FROM pg_roles WHERE rolname = ANY($1)", []string{logins[2].Username, last.Username}).Scan(&n))
		return n == 0
	})
}

func TestFileIsRemovedAtTheEnd(t *testing.T) {
	t.Parallel()
	h, _ := newLeasingHost(t)
	h.Start()
	path := h.Path("login")
	start := func() *leasetest.Following {
		f := h.Follow("get", "tides", "--write", path, "--follow")
		eventually(t, "the file is there", func() bool { _, ok := delivered(t, path); return ok })
		return f
	}
	f := start()
	must(t, f.Cmd.Process.Signal(syscall.SIGTERM))
	if err := f.Ends(t); err != nil {
		t.Errorf("vouch ends with %v: %s", err, f.Stderr)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after SIGTERM the file is there: %v", err)
	}

	f = start() // and is granted it no more
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"unix:uid:%d\"]}\n", os.Getuid()))
	if err := f.Ends(t); err == nil || !strings.Contains(f.Stderr.String(), "not granted") {
		t.Errorf("vouch ends with %v: %s", err, f.Stderr)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the grant has gone the file is there: %v", err)
	}
}

func TestFilesThatOthersCouldReplaceAreRefused(t *testing.T) {
	t.Parallel()
	h, _ := newLeasingHost(t)
	h.Start()
	must(t, os.Mkdir(h.Path("open"), 0o755))
	must(t, os.Chmod(h.Path("open"), 0o777))
	file := func(args ...string) []string {
		return append([]string{"get", "tides-for-all"}, args...)
	}
	for _, tt := range []struct {
		args []string
		code int
		err  string
	}{
		{file("--output", "file"), 2, `--write is required`},
		{file("--write", h.Path("open/login")), 1, `mode 0777 lets others replace files there; run: chmod go-w`},
		{file("--write", h.Path("nowhere/login")), 1, `nowhere: no such file`},
		{file("--write", h.Path("x"), "--mode", "0666"), 2, `only the owner write`},
		{file("--write", h.Path("x"), "--mode", "4600"), 2, `only the owner write`},
		{file("--write", h.Path("x"), "--owner", "nobody-of-that-name"), 2, `--owner`},
		{file("--write", h.Path("x"), "--signal", "HUP"), 2, `--signal and --pid must be given together`},
		{file("--write", h.Path("x"), "--signal", "LOUD", "--pid", "1"), 2, `want a signal's name`},
		{file("--write", h.Path("x"), "--signal", "HUP", "--pid", "4194303"), 1, `--pid: .*exited`},
		{file("--write", h.Path("x"), "--format", "yaml"), 2, `want text, json or env`},
		{file("--write", h.Path("x"), "--exec", "exit 3"), 0, `^$`}, // nothing was replaced
		{file("--write", h.Path("x"), "--exec", "exit 3"), 1, `running "exit 3": exit status 3`},
		{[]string{"get", "tides", "--output", "file", "--path", h.Path("y")}, 1, `ends with the process`},
		{[]string{"get", "tides-for-all", "--format", "json"}, 2, `--format requires --write`},
		{[]string{"get", "tides-for-all", "--follow"}, 2, `--follow requires --write`},
		{[]string{"fetch", "jwt", "--audience", "a", "--follow"}, 2, `--follow requires --write`},
	} {
		if _, stderr, code := h.Vouch(tt.args...); code != tt.code || !matches(tt.err, stderr) {
			t.Errorf("vouch %s exits %d, want %d\n-- err, want %s --\n%s", strings.Join(tt.args, " "), code, tt.code, tt.err, stderr)
		}
	}
	if _, err := os.Stat(h.Path("y")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was refused left a file: %v", err)
	}
}

func TestTokenIsKeptFreshInAFile(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"unix:uid:%d\"], jwt_svid_ttl: 10s}\n", os.Getuid()))
	h.Start()
	path := h.Path("token")
	f := h.Follow("fetch", "jwt", "--audience", "https://api.anthropic.com", "--write", path, "--follow")
	seen := make(map[string]bool)
	eventually(t, "a second token is in the file", func() bool {
		b, err := os.ReadFile(path)
		if err != nil {
			return false
		}
		seen[string(b)] = true
		return len(seen) == 2
	})
	for token := range seen {
		parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
		must(t, err)
		var c jwt.Claims
		must(t, parsed.UnsafeClaimsWithoutVerification(&c))
		if c.Subject != "spiffe://example.org/agent" || !c.Audience.Contains("https://api.anthropic.com") {
			t.Errorf("claims %+v", c)
		}
	}
	must(t, f.Cmd.Process.Signal(syscall.SIGTERM))
	if err := f.Ends(t); err != nil {
		t.Errorf("vouch ends with %v: %s", err, f.Stderr)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is there: %v", err)
	}
}
