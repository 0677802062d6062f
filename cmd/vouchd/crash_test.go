package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"
	"github.com/vouchd/vouchd/credential/postgres/pgtest"
)

// A barrier stands between the daemon and PostgreSQL, and does something at the nth
// message that the daemon sends.
type barrier struct {
	server string // its socket

	mu     sync.Mutex // guards the fields below
	passed int        // messages so far
	at     int        // 0: none
	do     func()     // on the way of that message
	after  moment
	cut    bool // the connection is cut then
}

// A moment is where a message is when something happens.
type moment string

const (
	sent     moment = "before it reaches the server"
	done     moment = "before the answer reaches the daemon"
	answered moment = "as the answer reaches the daemon"
)

// newBarrier puts a barrier into a directory.
func newBarrier(t *testing.T, dir string, pg *pgtest.Server) *barrier {
	t.Helper()
	name := fmt.Sprintf(".s.PGSQL.%d", pg.Port)
	g := &barrier{server: filepath.Join(pg.SocketDir, name)}
	must(t, os.Mkdir(dir, 0o755))
	l, err := net.Listen("unix", filepath.Join(dir, name))
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go g.relay(conn)
		}
	}()
	return g
}

// arm sets what happens at the nth message from now on, counted from 1, and
// whether the connection is cut then, as if one end had died.
func (g *barrier) arm(n int, after moment, cut bool, do func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.passed, g.at, g.after, g.cut, g.do = 0, n, after, cut, do
}

// count counts a message, and returns what is to be done on its way.
func (g *barrier) count() (after moment, cut bool, do func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.passed++; g.passed == g.at {
		return g.after, g.cut, g.do
	}
	return "", false, nil
}

func (g *barrier) relay(daemon net.Conn) {
	defer daemon.Close()
	server, err := net.Dial("unix", g.server)
	if err != nil {
		return
	}
	defer server.Close()
	answers := make(chan []byte)
	go func() {
		defer close(answers)
		for {
			b := make([]byte, 64<<10)
			n, err := server.Read(b)
			if err != nil {
				return
			}
			answers <- b[:n]
		}
	}()
	messages := make(chan []byte)
	go func() {
		defer close(messages)
		for {
			b := make([]byte, 64<<10)
			n, err := daemon.Read(b)
			if err != nil {
				return
			}
			messages <- b[:n]
		}
	}()
	defer func() { go drain(answers); go drain(messages) }()
	var after moment
	var cut bool
	var do func()
	// happens does what is due at a moment, and reports whether that cuts the
	// connection.
	happens := func(now moment) bool {
		if do == nil || after != now {
			return false
		}
		do()
		do = nil
		return cut
	}
	for {
		select {
		case m, ok := <-messages:
			if !ok {
				return
			}
			if after, cut, do = g.count(); happens(sent) {
				return
			}
			if _, err := server.Write(m); err != nil {
				return
			}
		case a, ok := <-answers:
			if !ok || happens(done) {
				return
			}
			if _, err := daemon.Write(a); err != nil || happens(answered) {
				return
			}
		}
	}
}

func drain(c <-chan []byte) {
	for range c {
	}
}

// Whatever message of a lease's life the daemon is killed at, its next start
// leaves nothing at the server: neither what was asked for nor what was got.
func TestDaemonKilledAtEveryStepOfALeaseLeavesNoOrphan(t *testing.T) {
	t.Parallel()
	pg, err := leasetest.Database()
	must(t, err)
	for i, after := range []moment{sent, done, answered} {
		t.Run(string(after), func(t *testing.T) {
			t.Parallel()
			name := fmt.Sprintf("killed%d", i)
			h, g := newGatedHost(t, pg, name)
			steps := 0
			for n := 1; ; n++ {
				h.StartProcess()
				killed := make(chan struct{})
				g.arm(n, after, true, func() { h.Cmd.Process.Kill(); close(killed) })
				_, stderr, code := h.Vouch("exec", "--credential", name+"=PG", "--", "true")
				select {
				case <-killed:
				default:
					if code != 0 {
						t.Fatalf("undisturbed, vouch exits %d: %s", code, stderr)
					}
					if steps < 6 {
						t.Errorf("only %d messages make a lease", steps)
					}
					return
				}
				h.Wait()
				steps++
				g.arm(0, "", false, nil)
				h.StartProcess()
				h.nothingLeft(pg, name, fmt.Sprintf("killed at message %d", n))
				h.Stop()
			}
		})
	}
}

// newGatedHost returns a host whose daemon may lease one credential of the
// database, through a barrier.
func newGatedHost(t *testing.T, pg *pgtest.Server, credential string) (*host, *barrier) {
	t.Helper()
	h := newHost(t)
	g := newBarrier(t, h.Path("pg"), pg)
	must(t, os.WriteFile(h.Path("password"), []byte("the-daemons-own\n"), 0o600))
	h.Grants(fmt.Sprintf("  - {name: %s, broker: postgres, postgres: {host: %s, port: %d, database: postgres, user: vouchd, password_file: %s, grants: [\"GRANT SELECT ON public.tides TO {{role}}\"]}}\n",
		credential, h.Path("pg"), pg.Port, h.Path("password")), credential)
	return h, g
}

// nothingLeft waits until neither the daemon nor the server has anything of a
// credential.
func (h *host) nothingLeft(pg *pgtest.Server, credential, when string) {
	h.T.Helper()
	admin := pg.Admin(h.T, "postgres")
	defer admin.Close(h.T.Context())
	eventually(h.T, "nothing is left, "+when, func() bool {
		leases, err := h.Admin().Leases(h.T.Context())
		must(h.T, err)
		var roles int
		must(h.T, admin.QueryRow(h.T.Context(), "SELECT count(*) FROM pg_roles WHERE rolname LIKE $1", `vouch\_`+credential+`\_%`).Scan(&roles))
		return len(leases) == 0 && roles == 0
	})
}
