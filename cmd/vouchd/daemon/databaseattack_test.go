package daemon_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
)

// A wire is a connection on which a test sends messages as it likes.
type wire struct {
	net.Conn
	*pgproto3.Frontend
	t *testing.T
}

func (h *dbHost) wire(t *testing.T) *wire {
	t.Helper()
	c, err := net.Dial("unix", h.Socket("tides")+"/.s.PGSQL.5432")
	must(t, err)
	t.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	return &wire{c, pgproto3.NewFrontend(c, c), t}
}

func (w *wire) start() {
	w.t.Helper()
	w.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersionNumber, Parameters: map[string]string{"user": "me"}})
	must(w.t, w.Flush())
	w.until(1)
}

// until returns the kinds of what comes, up to so many messages that it is ready for the
// next, with the codes of errors.
func (w *wire) until(ready int) (said []string) {
	w.t.Helper()
	for ready > 0 {
		m, err := w.Receive()
		if err != nil {
			return append(said, err.Error())
		}
		switch m := m.(type) {
		case *pgproto3.ReadyForQuery:
			said = append(said, "ready "+string(m.TxStatus))
			ready--
		case *pgproto3.ErrorResponse:
			said = append(said, m.Severity+" "+m.Code)
			if m.Severity == "FATAL" {
				return said
			}
		case *pgproto3.CommandComplete:
			said = append(said, string(m.CommandTag))
		case *pgproto3.ParseComplete:
			said = append(said, "parsed")
		}
	}
	return said
}

// TestRefusedStatementsFailInTheirPlace: what was sent before and after them keeps its
// order, and a transaction fails as by any error.
func TestRefusedStatementsFailInTheirPlace(t *testing.T) {
	t.Parallel()
	h := newDatabase(t, "statements: [SELECT, SHOW]")
	h.Start()
	check := func(name string, got []string, want ...string) {
		t.Helper()
		if strings.Join(got, ", ") != strings.Join(want, ", ") {
			t.Errorf("%s: %s, want %s", name, strings.Join(got, ", "), strings.Join(want, ", "))
		}
	}
	w := h.wire(t)
	w.start()
	for _, sql := range []string{"SELECT 1", "DELETE FROM tides", "SELECT 2", "BEGIN", "DROP TABLE tides", "SELECT 3", "DELETE FROM tides", "ROLLBACK", "SELECT 1; DROP TABLE tides", "SELECT 4"} {
		w.Send(&pgproto3.Query{String: sql})
	}
	must(t, w.Flush())
	check("simple statements, all at once", w.until(10),
		"SELECT 1", "ready I", "ERROR 42501", "ready I", "SELECT 1", "ready I", "BEGIN", "ready T", "ERROR 42501", "ready E",
		"ERROR 25P02", "ready E", "ERROR 25P02", "ready E", "ROLLBACK", "ready I", "ERROR 42501", "ready I", "SELECT 1", "ready I")
	for _, sql := range []string{"SELECT $1::int", "INSERT INTO tides VALUES ($1)", "SELECT 5"} {
		w.Send(&pgproto3.Parse{Name: "a", Query: sql})
		w.Send(&pgproto3.Bind{PreparedStatement: "a", Parameters: [][]byte{[]byte("1")}})
		w.Send(&pgproto3.Execute{})
		w.Send(&pgproto3.Close{ObjectType: 'S', Name: "a"})
		w.Send(&pgproto3.Sync{})
	}
	must(t, w.Flush())
	got := w.until(3)
	check("prepared statements", got[:4], "parsed", "SELECT 1", "ready I", "ERROR 42501")
	w.Send(&pgproto3.FunctionCall{Function: 1299})
	w.Send(&pgproto3.Query{String: "SELECT 6"})
	must(t, w.Flush())
	check("a function call", w.until(2), "ERROR 42501", "ready I", "SELECT 1", "ready I")
	// The setting that strings are read by does not change, whichever way it is tried.
	w.Send(&pgproto3.Query{String: "SELECT query_to_xml('select set_config(''standard_conforming_strings'', ''off'', false)', true, true, '')"})
	must(t, w.Flush())
	if got := w.until(1); got[len(got)-1] != "FATAL 42501" {
		t.Errorf("a setting that changes by a detour: %v", got)
	}
	if out, _ := h.Psql("UPDATE tides SET height = 8;\n"); !strings.Contains(out, "vouchd: the statement is not allowed: UPDATE is not among the statements that are allowed") || strings.Contains(out, "CAST") {
		t.Errorf("psql prints %s", out)
	}
	var height int
	must(t, h.Agent().QueryRow(t.Context(), "SELECT height FROM tides").Scan(&height))
	if log := h.serverLog(); strings.Contains(log, "statement: DROP TABLE tides") || strings.Contains(log, "statement: DELETE FROM tides") || strings.Contains(log, "INSERT INTO tides VALUES ($1)") {
		t.Error("the server has seen what is not allowed")
	}
	w.Close()
	eventually(t, "the outcome counts what was refused", func() bool {
		for _, r := range daemontest.RecordsYet(h.Host.Host, "proxy.outcome", audit.Failed) {
			if strings.Contains(r.Call.Statements, "refused=6") {
				return true
			}
		}
		return false
	})
}

func TestReadOnlyIsWhatTheServerSays(t *testing.T) {
	t.Parallel()
	h := newDatabase(t, "read_only: true")
	h.Start()
	c := h.Agent()
	var on string
	must(t, c.QueryRow(t.Context(), "SHOW default_transaction_read_only").Scan(&on))
	if on != "on" {
		t.Errorf("default_transaction_read_only is %s", on)
	}
	for sql, want := range map[string]string{
		"CREATE TEMP TABLE x (a int)":                           "42501",
		"SET default_transaction_read_only = off":               "42501",
		"BEGIN READ WRITE":                                      "42501",
		"SELECT nextval('pg_catalog.x')":                        "42P01",
		"SELECT set_config('transaction_read_only','off',true)": "42501",
	} {
		if _, err := c.Exec(t.Context(), sql); stateOf(err) != want {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

// TestWhatIsNoMessageOfAnAgentsEndsTheConnection: a password above all.
func TestWhatIsNoMessageOfAnAgentsEndsTheConnection(t *testing.T) {
	t.Parallel()
	h := newDatabase(t)
	h.Start()
	w := h.wire(t)
	w.start()
	w.Send(&pgproto3.PasswordMessage{Password: "guess"})
	must(t, w.Flush())
	if got := w.until(1); len(got) != 1 || got[0] != "FATAL 08P01" {
		t.Errorf("a password: %v", got)
	}
	for _, kind := range []byte{'R', 'Z', 0, 'v'} {
		w := h.wire(t)
		w.start()
		_, err := w.Conn.Write([]byte{kind, 0, 0, 0, 4})
		must(t, err)
		if got := w.until(1); len(got) != 1 || got[0] != "FATAL 08P01" {
			t.Errorf("kind %q: %v", kind, got)
		}
	}
	for name, bytes := range map[string][]byte{
		"a length below what it counts": {'Q', 0, 0, 0, 3},
		"a length without end":          {'Q', 255, 255, 255, 255},
	} {
		w := h.wire(t)
		w.start()
		_, err := w.Conn.Write(bytes)
		must(t, err)
		if got := w.until(1); len(got) != 1 || got[0] != "FATAL 08P01" {
			t.Errorf("%s: %v", name, got)
		}
	}
	// Encryption is declined, each kind once, and nothing else begins a connection.
	w = h.wire(t)
	for _, code := range []uint32{80877103, 80877104} {
		_, err := w.Conn.Write(binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, code))
		must(t, err)
		var answer [1]byte
		_, err = io.ReadFull(w.Conn, answer[:])
		must(t, err)
		if answer[0] != 'N' {
			t.Errorf("encryption is answered with %q", answer)
		}
	}
	w.start()
	for name, bytes := range map[string]string{
		"TLS from its first byte":         "\x16\x03\x01\x02\x00\x01\x00\x01",
		"HTTP":                            "GET / HTTP/1.1\r\n\r\n",
		"version 2":                       "\x00\x00\x00\x08\x00\x02\x00\x00",
		"a startup of a gigabyte":         "\x40\x00\x00\x00\x00\x03\x00\x00",
		"a parameter without a value":     "\x00\x00\x00\x0e\x00\x03\x00\x00user\x00\x00",
		"something behind the parameters": "\x00\x00\x00\x11\x00\x03\x00\x00user\x00a\x00\x00x",
		"a parameter that is there twice": "\x00\x00\x00\x17\x00\x03\x00\x00user\x00a\x00user\x00b\x00\x00",
	} {
		w := h.wire(t)
		_, err := io.WriteString(w.Conn, bytes)
		must(t, err)
		if got := w.until(1); len(got) != 1 || got[0] != "FATAL 08P01" {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestDatabaseIsForWhoIsEntitled: not for another user's process, nor for one that was given
// a connection.
func TestDatabaseIsForWhoIsEntitled(t *testing.T) {
	t.Parallel()
	h := newDatabase(t)
	h.Start()
	if os.Getuid() == 0 {
		cmd := exec.Command("setpriv", "--reuid", "64123", "--regid", "64123", "--clear-groups", "psql", "-X", "-w", "-h", h.Socket("tides"), "-c", "SELECT 1")
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "PGUSER=me"}
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "no identity") && !strings.Contains(string(out), "none grants tides") {
			t.Errorf("another user: %v %s", err, out)
		}
	}
	out, err := exec.Command("python3", "-c", `
import os, socket, struct, sys
def startup():
    body = struct.pack(">I", 196608) + b"user\0me\0\0"
    return struct.pack(">I", len(body) + 4) + body
def query(sql):
    return b"Q" + struct.pack(">I", len(sql) + 5) + sql.encode() + b"\0"
def read(s):
    data = b""
    while not data.endswith(b"Z\0\0\0\x05I"):
        try: b = s.recv(65536)
        except ConnectionResetError: b = b""
        if not b: return data + b"<closed>"
        data += b
    return data
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
s.sendall(startup()); assert b"closed" not in read(s)
if os.fork() == 0:             # a process to which the socket was passed
    try: s.sendall(query("SELECT height FROM tides"))
    except OSError: pass
    os._exit(0)
os.wait()
print("child", read(s))
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
if os.fork() == 0:
    s.sendall(startup())
    os._exit(0)
os.wait()
print("startup", read(s))
`, h.Socket("tides")+"/.s.PGSQL.5432").CombinedOutput()
	if text := string(out); err != nil || !strings.Contains(text, "child b'<closed>'") || !strings.Contains(text, "startup b'<closed>'") {
		t.Errorf("a socket that was passed on: %s", text)
	}
	if log := h.serverLog(); strings.Contains(log, "no identity") {
		t.Error("who was refused reached the server")
	}
}

// TestHandleIsTheNameOfTheUser, where an entry narrows by the program.
func TestHandleIsTheNameOfTheUser(t *testing.T) {
	t.Parallel()
	h := newDatabase(t)
	h.Entries(fmt.Sprintf("unix:uid:%d", os.Getuid()), "unix:path:"+daemontest.Program(t, "vouch"))
	h.Start()
	if out, code := h.Psql("SELECT 1;\n"); code == 0 || !strings.Contains(out, "lease a handle") && !strings.Contains(out, "none grants tides") {
		t.Errorf("without a handle psql exits %d: %s", code, out)
	}
	run := func(script string) string {
		cmd := exec.Command("sh", "-c", script)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "VOUCHD_CONFIG=" + h.Path("vouchd.yaml"), "SPIFFE_ENDPOINT_SOCKET=unix://" + h.Path("agent.sock"),
			"vouch=" + daemontest.Program(t, "vouch"), "PGHOST=" + h.Socket("tides")}
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	if out := run(`$vouch exec --credential tides=PGUSER -- psql -X -w -A -t -d postgres -c 'SELECT height FROM tides'`); out != "7\n" {
		t.Errorf("with the handle psql prints %s", out)
	}
	if out := run(`unset PGHOST; $vouch exec --proxy tides -- sh -c 'psql -X -w -A -t -c "SELECT height FROM tides"; psql -X -w -A -t $DATABASE_URL -c "SELECT height FROM tides"'`); out != "7\n7\n" {
		t.Errorf("by vouch exec --proxy psql prints %s", out)
	}
	out := run(`dir=$(mktemp -d); mkfifo $dir/out $dir/hold
		$vouch exec --credential tides=KEY -- sh -c 'echo $KEY >'$dir'/out; read x <'$dir'/hold' &
		read key <$dir/out
		PGUSER=$key psql -X -w -d postgres -c 'SELECT height FROM tides'
		echo >$dir/hold; wait; rm -r $dir`)
	if !strings.Contains(out, "the handle is not one that this process") {
		t.Errorf("with another's handle psql prints %s", out)
	}
}

// A seller is a server that speaks as a test likes once it has read the startup.
func seller(t *testing.T, speak func(c net.Conn)) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(20 * time.Second))
				if _, err := pgproto3.NewBackend(c, c).ReceiveStartupMessage(); err == nil {
					speak(c)
				}
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// TestPasswordGoesToNobodyWhoAsksForItInTheOpen: by MD5 only where the definition says so.
func TestPasswordGoesToNobodyWhoAsksForItInTheOpen(t *testing.T) {
	t.Parallel()
	said := make(chan string, 10)
	asks := byte(3)
	port := seller(t, func(c net.Conn) {
		m := []byte{'R', 0, 0, 0, 8, 0, 0, 0, asks}
		if asks == 5 {
			m[4] = 12
			m = append(m, 1, 2, 3, 4)
		}
		c.Write(m)
		b := make([]byte, 256)
		n, _ := c.Read(b)
		said <- string(b[:n])
	})
	h := newDatabase(t)
	define := func(more string) {
		h.Write("credentials.d/tides.yaml", fmt.Sprintf(`credentials:
  - name: tides
    broker: static
    static: {secret: tides-password}
    database: {protocol: postgres, upstream: "postgres://127.0.0.1:%d/x", tls: off, user: canary, allow_addresses: [127.0.0.1/32]%s}
`, port, more))
	}
	define("")
	h.Start()
	const secret = "correct-horse-battery-staple"
	if _, stderr, code := h.VouchReads([]byte(secret), "secret", "seal", "tides-password"); code != 0 {
		t.Fatal(stderr)
	}
	for _, asks = range []byte{3, 5} {
		if _, err := h.Connect(t.Context(), ""); stateOf(err) != "08006" || strings.Contains(err.Error(), secret) {
			t.Errorf("asked by %d: %v", asks, err)
		}
		if text := <-said; text != "" {
			t.Errorf("asked by %d, the proxy says %q", asks, text)
		}
	}
	define(", allow_md5: true")
	eventually(t, "MD5 is answered where it is allowed", func() bool {
		h.Connect(t.Context(), "")
		text := <-said
		return strings.HasPrefix(text, "p") && strings.Contains(text, "md5") && !strings.Contains(text, secret)
	})
}

// TestConnectionsEndWithTheProcessAndTheDaemon, and so do their logins.
func TestConnectionsEndWithTheProcessAndTheDaemon(t *testing.T) {
	t.Parallel()
	h := newDatabase(t)
	h.Wrap = []string{"sh", "-c", `umask 077; exec "$@"`, "sh"} // as its unit has it
	h.StartProcess()
	h.Ready("tides")
	for path, mode := range map[string]os.FileMode{h.Path("pg"): 0o755, h.Socket("tides"): 0o755, h.Socket("tides") + "/.s.PGSQL.5432": 0o666} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s has mode %v, want %v: everybody may connect (%v)", path, info.Mode(), mode, err)
		}
	}
	user := func() (string, func() error) {
		c, err := h.Connect(t.Context(), "")
		must(t, err)
		var name string
		must(t, c.QueryRow(t.Context(), "SELECT current_user").Scan(&name))
		return name, func() error { _, err := c.Exec(context.Background(), "SELECT 1"); return err }
	}
	first, works := user()
	for _, pid := range childrenOf(t, h.Cmd.Process.Pid) {
		p, err := os.FindProcess(pid)
		must(t, err)
		must(t, p.Kill())
	}
	eventually(t, "its login is gone", func() bool { return len(h.roles(first)) == 0 })
	if works() == nil {
		t.Error("the connection goes on without the proxy")
	}
	var second string
	eventually(t, "there is another process", func() bool {
		c, err := h.Connect(t.Context(), "connect_timeout=2")
		if err == nil {
			c.Close(t.Context())
		}
		return err == nil
	})
	second, works = user()
	must(t, h.Cmd.Process.Kill())
	h.Wait()
	eventually(t, "the connection ends with the daemon", func() bool { return works() != nil })
	h.StartProcess()
	eventually(t, "its login is gone", func() bool { return len(h.roles(second)) == 0 })
	h.Ready("tides")
	_, works = user()
	must(t, works())
	h.Stop()
	if _, err := os.Stat(h.Socket("tides")); err == nil {
		t.Error("the socket is left behind")
	}
}

// TestLongStatementsOfOneUserTakeTurns: they are held until they are judged, and together are
// more than one user may have held.
func TestLongStatementsOfOneUserTakeTurns(t *testing.T) {
	t.Parallel()
	h := newDatabase(t, "statements: [SELECT]")
	h.Start()
	const long = 900 << 10
	var work sync.WaitGroup
	for range 40 {
		c := h.Agent()
		work.Go(func() {
			var n int
			err := c.QueryRow(t.Context(), "SELECT length('"+strings.Repeat("a", long)+"')").Scan(&n)
			if err != nil || n != long {
				t.Errorf("a statement is answered with %d (%v)", n, err)
			}
		})
	}
	work.Wait()
}
