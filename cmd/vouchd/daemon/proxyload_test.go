package daemon_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/proxytest"
)

// TestRequestOfAProgramThatIsReplacedIsNotTheNextOnes: a shell that nobody entitles writes
// a request into its connection, and then becomes the program that an entry names, which
// has the connection still.
func TestRequestOfAProgramThatIsReplacedIsNotTheNextOnes(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t)
	sleep, err := exec.LookPath("sleep")
	must(t, err)
	h.Entries(fmt.Sprintf("unix:uid:%d", os.Getuid()), "unix:path:"+sleep)
	h.Start()
	out, err := exec.Command("python3", "-c", `
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
child = os.fork()
if child == 0:            # reads the answer
    data = b""
    while True:
        b = s.recv(65536)
        if not b: break
        data += b
        if b"\r\n\r\n" in data and (b"}" in data or b"ok" in data): break
    print(data.decode())
    os._exit(0)
s.set_inheritable(True)
s.sendall(b"GET /api/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
os.execv(sys.argv[2], ["sleep", "3"])
`, h.Path("proxy.sock"), sleep).CombinedOutput()
	must(t, err)
	if !strings.Contains(string(out), "403 Forbidden") || strings.Contains(string(out), "\r\n\r\nok") {
		t.Errorf("the child reads %s", out)
	}
	if n := len(h.Upstream.Got()); n > 0 {
		t.Errorf("%d requests reached the upstream", n)
	}
}

// TestManyStreamsAtOnce: each gets its events, over both protocols, and none takes much
// memory.
func TestManyStreamsAtOnce(t *testing.T) {
	t.Parallel()
	const streams = 1000 // of each
	h := proxytest.New(t)
	h.StartProcess()
	h.Seal()
	h.Upstream.Forget()
	release := make(chan struct{})
	var begun sync.WaitGroup // or refused
	begun.Add(2 * streams)
	h.Upstream.Handle(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "data: first\n\n")
		http.NewResponseController(w).Flush()
		begun.Done()
		<-release
		io.WriteString(w, "data: last\n\n")
	})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var work sync.WaitGroup
	for _, c := range []*http.Client{h.Client(), h.HTTP2()} {
		for range streams {
			work.Go(func() {
				r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/api/events", nil)
				if err != nil {
					t.Error(err)
					begun.Done()
					return
				}
				resp, err := c.Do(r)
				if err != nil {
					t.Error(err)
					begun.Done()
					return
				}
				defer resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					begun.Done()
				}
				b, err := io.ReadAll(resp.Body)
				if err != nil || string(b) != "data: first\n\ndata: last\n\n" {
					t.Errorf("a stream has %s %q (%v)", resp.Status, b, err)
				}
			})
		}
	}
	begun.Wait()
	const most = 256 << 10 // bytes, of a stream
	for _, pid := range childrenOf(t, h.Cmd.Process.Pid) {
		n := peak(t, pid)
		t.Logf("the proxy has had %d MiB with %d streams", n>>20, 2*streams)
		if n > 2*streams*most {
			t.Errorf("that is more than %d KiB for each", most>>10)
		}
	}
	close(release)
	work.Wait()
}

// pattern is content of any length.
type pattern struct{ left int64 }

func (p *pattern) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), p.left))
	for i := range n {
		b[i] = "0123456789abcdef\n"[(p.left-int64(i))%17]
	}
	p.left -= int64(n)
	return n, nil
}

// TestLongContentPassesInConstantMemory, each way, of a proxy that is a process.
func TestLongContentPassesInConstantMemory(t *testing.T) {
	t.Parallel()
	const length = 192 << 20
	h := proxytest.New(t)
	h.StartProcess()
	h.Seal()
	h.Upstream.Forget()
	h.Upstream.Handle(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if r.Method == http.MethodPost {
			fmt.Fprintf(w, "%d %v", n, err)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(length))
		io.Copy(w, &pattern{length})
	})
	c := h.Client()
	r, err := http.NewRequest(http.MethodPost, "http://localhost/api/up", &pattern{length})
	must(t, err)
	r.ContentLength = length
	if resp, body := send(t, c, r); body != fmt.Sprint(length, " <nil>") {
		t.Errorf("%s: %.200s", resp.Status, body)
	}
	resp, err := c.Get("http://localhost/api/down")
	must(t, err)
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); n != length || err != nil {
		t.Errorf("%d bytes came back (%v)", n, err)
	}
	const most = 96 << 20
	for _, pid := range childrenOf(t, h.Cmd.Process.Pid) {
		if n := peak(t, pid); n > most {
			t.Errorf("the proxy has had %d MiB", n>>20)
		}
	}
}

// TestAgentsThatDoNotReadTakeLittleMemory: the upstream is held up.
func TestAgentsThatDoNotReadTakeLittleMemory(t *testing.T) {
	t.Parallel()
	const streams, length = 200, 8 << 20
	h := proxytest.New(t)
	h.StartProcess()
	h.Seal()
	h.Upstream.Forget()
	var sent atomic.Int64
	h.Upstream.Handle(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(length))
		content := &pattern{length}
		for b := make([]byte, 32<<10); content.left > 0; {
			n, _ := content.Read(b)
			if _, err := w.Write(b[:n]); err != nil {
				return
			}
			sent.Add(int64(n))
		}
	})
	for range streams {
		c, err := h.Dial(t.Context())
		must(t, err)
		defer c.Close()
		_, err = io.WriteString(c, "GET /api/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
		must(t, err)
	}
	last, same := int64(0), 0
	daemontest.Eventually(t, "the upstream is held up", func() bool { // for a hundred looks
		if now := sent.Load(); now != last {
			last, same = now, 0
		}
		same++
		return last > streams*64<<10 && same > 100
	})
	const most = 1 << 20 // bytes, of a stream
	for _, pid := range childrenOf(t, h.Cmd.Process.Pid) {
		if n := peak(t, pid); n > streams*most {
			t.Errorf("the proxy has had %d MiB", n>>20)
		}
	}
}

// TestCallIsRefusedWhileThereIsNoDaemonToDecide: none is made, and the next daemon makes
// them again.
func TestCallIsRefusedWhileThereIsNoDaemonToDecide(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t)
	h.StartProcess()
	h.Seal()
	begun, release := make(chan struct{}), make(chan struct{})
	h.Upstream.Handle(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(begun)
			<-release
		}
		io.WriteString(w, "ok")
	})
	ended := make(chan error, 1)
	go func() {
		resp, err := h.Client().Get("http://localhost/api/slow")
		if err == nil {
			resp.Body.Close()
		}
		ended <- err
	}()
	<-begun
	must(t, h.Cmd.Process.Kill())
	close(release)
	h.Wait()
	<-ended
	h.StartProcess()
	h.Ready()
	if _, body := get(t, h.Client(), "http://localhost/api/x"); body != "ok" {
		t.Errorf("after the daemon is back: %s", body)
	}
	if found := h.Records("proxy.call", audit.Success); len(found) != 2 {
		t.Errorf("the log has %d calls", len(found))
	}
	h.Stop()
	h.VerifyLog()
}

// TestKilledProxyIsStartedAgainAndIdentitiesAreServedMeanwhile.
func TestKilledProxyIsStartedAgainAndIdentitiesAreServedMeanwhile(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t)
	h.StartProcess()
	h.Seal()
	pids := childrenOf(t, h.Cmd.Process.Pid)
	must(t, exec.Command("kill", "-9", fmt.Sprint(pids[0])).Run())
	if _, err := h.Fetch(); err != nil {
		t.Errorf("while the proxy is gone: %v", err)
	}
	daemontest.Eventually(t, "calls are made again", func() bool {
		resp, err := h.Client().Get("http://localhost/api/x")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

func TestStreamOfAProxyThatIsReplacedGoesOnToItsEnd(t *testing.T) {
	t.Parallel()
	h := proxytest.New(t)
	more := make(chan string)
	h.Upstream.Handle(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/events" {
			io.WriteString(w, "ok")
			return
		}
		http.NewResponseController(w).Flush()
		for event := range more {
			fmt.Fprintf(w, "data: %s\n\n", event)
			http.NewResponseController(w).Flush()
		}
	})
	h.StartProcess()
	h.Seal()
	resp, err := h.Client().Get("http://localhost/api/events")
	must(t, err)
	defer resp.Body.Close()
	read := func(want string) {
		t.Helper()
		more <- want
		b := make([]byte, len("data: ")+len(want)+2)
		if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != "data: "+want+"\n\n" {
			t.Fatalf("the stream has %q, %v", b, err)
		}
	}
	read("before")
	old := childrenOf(t, h.Cmd.Process.Pid)
	must(t, exec.Command("kill", "-TERM", fmt.Sprint(old[0])).Run())
	// It takes no connection any more, and ends after its last call.
	daemontest.Eventually(t, "the next connection waits for the next proxy", func() bool {
		read("meanwhile")
		c := h.Client()
		c.Timeout = 200 * time.Millisecond
		_, err := c.Get("http://localhost/api/x")
		return err != nil
	})
	read("after")
	close(more)
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
		t.Errorf("the stream ends with %q, %v", rest, err)
	}
	daemontest.Eventually(t, "the next proxy makes calls, once it has a daemon", func() bool {
		resp, body := get(t, h.Client(), "http://localhost/api/x")
		if resp.StatusCode != http.StatusOK && resp.Header.Get("X-Vouchd") != "no_daemon" {
			t.Fatalf("a call gets %s", body)
		}
		return body == "ok"
	})
}

func childrenOf(t *testing.T, pid int) (pids []int) {
	t.Helper()
	out, err := exec.Command("pgrep", "-P", fmt.Sprint(pid)).Output()
	must(t, err)
	for f := range strings.FieldsSeq(string(out)) {
		var n int
		_, err := fmt.Sscan(f, &n)
		must(t, err)
		pids = append(pids, n)
	}
	return pids
}

// peak returns the most memory that a process has had, in bytes.
func peak(t *testing.T, pid int) (n int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	for line := range strings.Lines(string(b)) {
		if kb, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			_, err := fmt.Sscan(kb, &n)
			must(t, err)
		}
	}
	return n << 10
}
