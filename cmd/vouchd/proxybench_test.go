package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/proxytest"
)

// floorSocket makes a process of the test program a bare reverse proxy: what one costs
// that decides nothing. floorLog has it write a record of 1,400 bytes before each request,
// durable for all that wait (group commit), and nothing more.
const (
	floorSocket   = "TEST_FLOOR_SOCKET"
	floorUpstream = "TEST_FLOOR_UPSTREAM"
	floorCA       = "TEST_FLOOR_CA"
	floorLog      = "TEST_FLOOR_LOG"
)

func serveFloor(socket string) error {
	pem, err := os.ReadFile(os.Getenv(floorCA))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	to, err := url.Parse(os.Getenv(floorUpstream))
	if err != nil {
		return err
	}
	var handler http.Handler = &httputil.ReverseProxy{
		FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Header.Set("Authorization", "Bearer "+proxytest.Secret)
		},
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots}, MaxIdleConnsPerHost: 256, DisableCompression: true, ForceAttemptHTTP2: true,
		},
	}
	if path := os.Getenv(floorLog); path != "" {
		log, err := newFloorLog(path)
		if err != nil {
			return err
		}
		next := handler
		handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := log.append(); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	return http.Serve(l, handler)
}

// A groupLog makes records durable together: whoever comes while a write is under way
// waits for the next.
type groupLog struct {
	file *os.File
	in   chan chan error
}

func newFloorLog(path string) (*groupLog, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, 1<<30); err != nil {
		return nil, err
	}
	l := &groupLog{f, make(chan chan error, 1024)}
	go l.run()
	return l, nil
}

func (l *groupLog) append() error {
	done := make(chan error, 1)
	l.in <- done
	return <-done
}

func (l *groupLog) run() {
	record := make([]byte, 1400)
	for first := range l.in {
		all := []chan error{first}
	more:
		for {
			select {
			case d := <-l.in:
				all = append(all, d)
			default:
				break more
			}
		}
		_, err := l.file.Write(slices.Repeat(record, len(all)))
		err = errors.Join(err, unix.Fdatasync(int(l.file.Fd())))
		for _, d := range all {
			d <- err
		}
	}
}

// A way is one of the ways to the upstream that are compared.
type way struct {
	name   string
	client func() *http.Client // of its own connections
	url    string
	pids   []int // whose CPU time counts
}

// BenchmarkProxy compares ways to call an upstream over TLS on loopback, in one run.
func BenchmarkProxy(b *testing.B) {
	h := proxytest.New(b)
	text := make([]byte, 1024)
	for i := range text {
		text[i] = "lorem ipsum dolor\n"[i%18]
	}
	h.Upstream.Handle(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/events":
			events(w, r)
		case "/long":
			for range longContent / len(text) {
				w.Write(text)
			}
		case "/silent":
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		default:
			w.Write(text)
		}
	})
	h.Upstream.Forget()
	for name, more := range map[string]string{"window": "record: window", "unshaped": "redact: {shapes: off}"} {
		h.Write("credentials.d/"+name+".yaml", strings.Replace(h.Definition(name, more), "ttl: 1h", "ttl: 1h\n    max_ttl: 1h", 1))
	}
	h.Write("entries.d/b.yaml", strings.ReplaceAll(h.Read("entries.d/a.yaml"), "credentials: [api, other]", "credentials: [api, window, unshaped]"))
	must(b, os.Remove(h.Path("entries.d/a.yaml")))
	h.StartProcess()
	h.Seal()
	direct := func() *http.Client {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(h.Upstream.CA))
		return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, MaxIdleConnsPerHost: 256}}
	}
	daemon := h.Cmd.Process.Pid
	vouchd := append([]int{daemon}, children(b, daemon)...)
	ways := []way{
		{"direct", direct, h.Upstream.URL, nil},
		nginx(b, h),
		floor(b, h, "floor", ""),
		floor(b, h, "floor-records", h.Path("floor.log")),
		{"vouchd", over(h.Path("proxy.sock")), "http://localhost/api", vouchd},
		{"vouchd-window", over(h.Path("proxy.sock")), "http://localhost/window", vouchd},
		{"vouchd-unshaped", over(h.Path("proxy.sock")), "http://localhost/unshaped", vouchd},
	}
	for _, w := range []way{ways[1], ways[2], ways[4]} { // while nothing else has made them grow
		before := resident(b, w.pids)
		for _, streams := range []int{500, 2000} {
			b.Run(fmt.Sprintf("memory/streams=%d/%s", streams, w.name), func(b *testing.B) { memory(b, w, streams, before) })
		}
	}
	for _, clients := range []int{1, 16, 64} {
		for _, w := range ways {
			b.Run(fmt.Sprintf("get/clients=%d/%s", clients, w.name), func(b *testing.B) { measure(b, w, clients, true) })
		}
	}
	for _, w := range ways {
		b.Run("get-new/clients=16/"+w.name, func(b *testing.B) { measure(b, w, 16, false) })
	}
	for _, w := range ways {
		b.Run("100MB/"+w.name, func(b *testing.B) { download(b, w) })
	}
	for _, w := range ways {
		b.Run("event/streams=16/"+w.name, func(b *testing.B) { delays(b, w) })
	}
}

// over returns clients of a Unix socket.
func over(socket string) func() *http.Client {
	return func() *http.Client {
		return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}}
	}
}

// measure has clients get 1 KB again and again, each on a connection that is kept, or on
// a new one each time.
func measure(b *testing.B, w way, clients int, kept bool) {
	var mu sync.Mutex
	var took []time.Duration
	work := make(chan struct{})
	var all sync.WaitGroup
	for range clients {
		c := w.client()
		c.Transport.(*http.Transport).DisableKeepAlives = !kept
		defer c.CloseIdleConnections()
		must(b, get(c, w.url+"/x")) // the connection is there
		all.Go(func() {
			var mine []time.Duration
			for range work {
				began := time.Now()
				if err := get(c, w.url+"/x"); err != nil {
					b.Error(err)
				}
				mine = append(mine, time.Since(began))
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
		})
	}
	before := cpu(b, w.pids)
	for b.Loop() {
		work <- struct{}{}
	}
	close(work)
	all.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
	if len(w.pids) > 0 {
		b.ReportMetric(float64((cpu(b, w.pids)-before).Microseconds())/float64(b.N), "cpu-us/op")
	}
}

func get(c *http.Client, url string) error {
	resp, err := c.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}

const longContent = 100 << 20

// download has one client get long content.
func download(b *testing.B, w way) {
	c := w.client()
	defer c.CloseIdleConnections()
	b.SetBytes(longContent)
	before := cpu(b, w.pids)
	for b.Loop() {
		must(b, get(c, w.url+"/long"))
	}
	if len(w.pids) > 0 {
		b.ReportMetric(float64((cpu(b, w.pids)-before).Milliseconds())/float64(b.N), "cpu-ms/op")
	}
}

// memory opens streams on which nothing comes, and tells by how much a way's processes
// have grown.
func memory(b *testing.B, w way, streams, before int) {
	for b.Loop() {
		c := w.client()
		ctx, cancel := context.WithCancel(b.Context())
		for range streams {
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url+"/silent", nil)
			must(b, err)
			resp, err := c.Do(r)
			must(b, err)
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				b.Fatal(resp.Status)
			}
		}
		b.ReportMetric(float64(resident(b, w.pids)-before)/1024/float64(streams), "KB/stream")
		cancel()
		c.CloseIdleConnections()
	}
}

// resident returns the memory of processes, in bytes.
func resident(b *testing.B, pids []int) (all int) {
	b.Helper()
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		must(b, err)
		pages, err := strconv.Atoi(strings.Fields(string(text))[1])
		must(b, err)
		all += pages * os.Getpagesize()
	}
	return all
}

// events sends an event every 20 ms that says when it was sent.
func events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
			fmt.Fprintf(w, "data: %d\n\n", time.Now().UnixNano())
			http.NewResponseController(w).Flush()
		}
	}
}

// delays measures how long an event takes, on 16 streams.
func delays(b *testing.B, w way) {
	const streams = 16
	got := make(chan time.Duration, 1024)
	ctx, cancel := context.WithCancel(b.Context())
	var all sync.WaitGroup
	for range streams {
		all.Go(func() {
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url+"/events", nil)
			if err != nil {
				b.Error(err)
				return
			}
			resp, err := w.client().Do(r)
			if err != nil {
				b.Error(err)
				return
			}
			defer resp.Body.Close()
			buf := make([]byte, 4096)
			for {
				n, err := resp.Body.Read(buf)
				if err != nil {
					return
				}
				now := time.Now().UnixNano()
				for line := range strings.Lines(string(buf[:n])) {
					if sent, err := strconv.ParseInt(strings.TrimSpace(strings.TrimPrefix(line, "data: ")), 10, 64); err == nil {
						select {
						case got <- time.Duration(now - sent):
						case <-ctx.Done():
							return
						}
					}
				}
			}
		})
	}
	var took []time.Duration
	for b.Loop() {
		took = append(took, <-got)
	}
	cancel()
	all.Wait()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
}

// floor starts a bare reverse proxy, which records if it has a log.
func floor(b *testing.B, h *proxytest.Host, name, log string) way {
	b.Helper()
	socket := h.Path(name + ".sock")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), floorSocket+"="+socket, floorUpstream+"="+h.Upstream.URL, floorCA+"="+h.Path("ca.pem"), floorLog+"="+log)
	cmd.Stderr = b.Output()
	must(b, cmd.Start())
	b.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	daemontest.Eventually(b, name+" serves", func() bool { _, err := os.Stat(socket); return err == nil })
	return way{name, over(socket), "http://localhost", []int{cmd.Process.Pid}}
}

// nginx starts a plain reverse proxy.
func nginx(b *testing.B, h *proxytest.Host) way {
	b.Helper()
	socket := h.Path("nginx.sock")
	to := strings.TrimPrefix(h.Upstream.URL, "https://")
	h.Write("nginx.conf", fmt.Sprintf(`daemon off; worker_processes 2; pid %[1]s/nginx.pid; error_log stderr error; user root;
events { worker_connections 4096; }
http {
  access_log off; client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
  upstream up { server %[2]s; keepalive 256; }
  server {
    listen unix:%[3]s;
    location / { proxy_pass https://up; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Authorization "Bearer %[4]s"; proxy_buffering off; keepalive_requests 1000000000;
      proxy_ssl_verify on; proxy_ssl_trusted_certificate %[1]s/ca.pem; proxy_ssl_name example.com; }
  }
}
`, h.Dir, to, socket, proxytest.Secret))
	cmd := exec.Command("nginx", "-c", h.Path("nginx.conf"))
	cmd.Stderr = b.Output()
	must(b, cmd.Start())
	b.Cleanup(func() { cmd.Process.Signal(syscall.SIGTERM); cmd.Wait() })
	daemontest.Eventually(b, "nginx serves", func() bool { _, err := os.Stat(socket); return err == nil })
	return way{"nginx", over(socket), "http://localhost", append([]int{cmd.Process.Pid}, children(b, cmd.Process.Pid)...)}
}

// children returns the processes that a process has started.
func children(b *testing.B, pid int) (pids []int) {
	b.Helper()
	var text []byte
	daemontest.Eventually(b, "it has a child", func() bool {
		lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
		must(b, err)
		text = nil
		for _, l := range lists {
			t, err := os.ReadFile(l)
			if err == nil {
				text = append(text, t...)
			}
		}
		return len(text) > 0
	})
	for f := range strings.FieldsSeq(string(text)) {
		n, err := strconv.Atoi(f)
		must(b, err)
		pids = append(pids, n)
	}
	return pids
}

// cpu returns the time that processes have spent, in user and kernel.
func cpu(b *testing.B, pids []int) (all time.Duration) {
	b.Helper()
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		must(b, err)
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+2:]))
		for _, f := range fields[11:13] { // utime and stime, in ticks of 10 ms (proc_pid_stat(5))
			n, err := strconv.Atoi(f)
			must(b, err)
			all += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return all
}
