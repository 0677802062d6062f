package daemon_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/databasetest"
)

func TestAgentUsesRedisWithoutAPassword(t *testing.T) {
	t.Parallel()
	h := databasetest.NewRedis(t)
	h.Start()
	if out := h.CLI("SET tide high\nGET tide\nINCR n\nHSET h a 1 b 2\nHGETALL h\nACL WHOAMI\nCLIENT INFO\n"); !strings.HasPrefix(out, "OK\nhigh\n1\n2\na\n1\nb\n2\nNOPERM vouchd: the command is not allowed: ACL is not allowed to anybody here\n") ||
		!strings.Contains(out, " db=2 ") || !strings.Contains(out, " user=agent ") {
		t.Errorf("redis-cli prints\n%s", out)
	}
	if out := h.CLI("HGETALL h\n", "-3"); !strings.Contains(out, "a 1") && !strings.Contains(out, "a\n1") {
		t.Errorf("with RESP 3, redis-cli prints\n%s", out)
	}
	out, err := exec.Command("/usr/bin/python3", "-c", `
import redis, sys, threading
r = redis.Redis(unix_socket_path=sys.argv[1], db=2)
p = r.pipeline(transaction=False)
for i in range(10000): p.set("k%d" % i, "v" * 100)
assert all(p.execute())
big = b"x" * 50_000_000
r.set("big", big); assert r.get("big") == big
with r.pipeline() as p:
    p.multi(); p.incr("t"); p.incr("t"); assert p.execute() == [1, 2]
sub = r.pubsub(); sub.subscribe("tide")
assert sub.get_message(timeout=5)["type"] == "subscribe"
r.publish("tide", "low")
assert sub.get_message(timeout=5)["data"] == b"low"
for bad in (("CONFIG", "GET", "*"), ("MIGRATE", "h", "1", "k", "0", "1"), ("SELECT", "3"), ("CLIENT", "KILL", "TYPE", "normal"), ("RESET",), ("AUTH", "x")):
    try: r.execute_command(*bad); print("allowed", bad)
    except redis.ResponseError as e: assert "vouchd" in str(e), e
print("fine")
`, h.Socket()).CombinedOutput()
	if err != nil || string(out) != "fine\n" {
		t.Errorf("redis-py: %v\n%s", err, out)
	}
	eventually(t, "what came of the connections is recorded", func() bool {
		all := ""
		for _, r := range daemontest.RecordsYet(h.Host, "proxy.outcome", audit.Success) {
			all += r.Call.Door + " " + r.Call.Statements + "\n"
		}
		return strings.Contains(all, "redis EXEC=1,GET=1,INCRBY=2,MULTI=1,SELECT=1,SET=10001,SUBSCRIBE=1\n") && strings.Contains(all, "redis PUBLISH=1,SELECT=1,refused=6\n")
	})
}

// resp sends bytes, and returns what comes until the connection ends, or so many lines.
func resp(t *testing.T, h *databasetest.RedisHost, text string, lines int) (said []string) {
	t.Helper()
	c, err := net.Dial("unix", h.Socket())
	must(t, err)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	go io.WriteString(c, text)
	in := bufio.NewReader(c)
	for range lines {
		line, err := in.ReadString('\n')
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%q: %v", text, err)
			}
			return append(said, "end")
		}
		said = append(said, strings.TrimSpace(line))
	}
	return said
}

func TestRefusedCommandsFailInTheirPlace(t *testing.T) {
	t.Parallel()
	h := databasetest.NewRedis(t, "commands: [GET, SET]")
	h.Start()
	words := func(commands ...string) (text string) {
		for _, c := range commands {
			f := strings.Fields(c)
			text += fmt.Sprintf("*%d\r\n", len(f))
			for _, w := range f {
				text += fmt.Sprintf("$%d\r\n%s\r\n", len(w), w)
			}
		}
		return text
	}
	got := resp(t, h, words("PING", "SET a 1", "DEL a", "get a", "EVAL x 0", "MULTI", "FLUSHALL", "EXEC", "PING", "QUIT"), 20)
	var short []string
	for _, l := range got {
		w, _, _ := strings.Cut(l, " ")
		short = append(short, w)
	}
	if strings.Join(short, " ") != "+PONG +OK -NOPERM $1 1 -NOPERM +OK -NOPERM -EXECABORT +PONG +OK end" {
		t.Errorf("the answers are %q", got)
	}
	for text, want := range map[string]string{
		"PING\r\n":                "-ERR",
		"*0\r\n":                  "-ERR",
		"*1\r\n$-1\r\n":           "-ERR",
		"*1\r\n$04\r\nPING\r\n":   "-ERR",
		"*1\r\n$4\r\nPINGS\r\n":   "-ERR",
		"*1\n$4\nPING\n":          "-ERR",
		"*99999999999\r\n":        "-ERR",
		"*1\r\n$999999999999\r\n": "-ERR",
		"*1\r\n$300\r\n" + strings.Repeat("A", 300) + "\r\n": "-ERR",
		"*" + strings.Repeat("1", 100) + "\r\n":              "-ERR",
		words("AUTH guess"):                                  "-WRONGPASS",
		words("AUTH agent guess"):                            "-WRONGPASS",
		words("HELLO 3 AUTH agent guess"):                    "-WRONGPASS",
		words("AUTH vouch" + strings.Repeat("a", 32)):        "-NOPERM",
		words("GET a") + "*2\r\n$3\r\nGET\r\n$1\r\nabc\r\n":  "-ERR",
		words("HELLO 2 SETNAME x"):                           "*14",
	} {
		if got := resp(t, h, text, 1); !strings.HasPrefix(got[0], want) {
			t.Errorf("%.60q: %q, want %s", text, got, want)
		}
	}
}

func TestRedisTakesAHandleForAPassword(t *testing.T) {
	t.Parallel()
	h := databasetest.NewRedis(t)
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"unix:uid:%d\", \"unix:path:%s\"], credentials: [cache]}\n", os.Getuid(), daemontest.Program(t, "vouch")))
	h.Start()
	if out := h.CLI("PING\n"); !strings.Contains(out, "NOPERM vouchd: ") {
		t.Errorf("without a handle: %s", out)
	}
	run := exec.Command(daemontest.Program(t, "vouch"), "exec", "--proxy", "cache", "--", "/usr/bin/python3", "-c", "import os, redis; print(redis.from_url(os.environ['REDIS_URL']).ping())")
	run.Env = []string{"PATH=" + os.Getenv("PATH"), "VOUCHD_CONFIG=" + h.Path("vouchd.yaml"), "SPIFFE_ENDPOINT_SOCKET=unix://" + h.Path("agent.sock")}
	if out, err := run.CombinedOutput(); err != nil || string(out) != "True\n" {
		t.Errorf("by vouch exec --proxy: %v %s", err, out)
	}
	for _, script := range []string{`redis-cli -s $SOCKET PING`, `redis-cli -s $SOCKET --no-auth-warning --user default --pass $REDISCLI_AUTH PING`, `redis-cli -3 -s $SOCKET PING`} {
		cmd := exec.Command(daemontest.Program(t, "vouch"), "exec", "--credential", "cache=REDISCLI_AUTH", "--", "sh", "-c", script)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "VOUCHD_CONFIG=" + h.Path("vouchd.yaml"), "SPIFFE_ENDPOINT_SOCKET=unix://" + h.Path("agent.sock"), "SOCKET=" + h.Socket()}
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != "PONG\n" {
			t.Errorf("%s: %v %s", script, err, out)
		}
	}
}

func TestRedisConnectionEndsWithItsLease(t *testing.T) {
	t.Parallel()
	h := databasetest.NewRedis(t)
	h.Start()
	c, err := net.Dial("unix", h.Socket())
	must(t, err)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = io.WriteString(c, "*3\r\n$5\r\nBLPOP\r\n$4\r\nnone\r\n$1\r\n0\r\n")
	must(t, err)
	eventually(t, "the lease is there", func() bool {
		leases, err := h.Admin().Leases(t.Context())
		must(t, err)
		return len(leases) == 1
	})
	h.OK("lease", "revoke", "--credential", "cache")
	b, err := io.ReadAll(c)
	if !matches(`^-(ERR|NOPERM) vouchd: the lease has ended: revoked`, string(b)) { // NOPERM: while it logged in
		t.Errorf("the agent reads %q (%v)", b, err)
	}
}
