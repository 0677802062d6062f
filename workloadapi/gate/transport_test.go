package gate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	grpcpeer "google.golang.org/grpc/peer"

	"github.com/vouchd/vouchd/attest/process"
)

// helpers are the programs that tests start as other processes: the test
// binary, called as one of them.
var helpers = map[string]func(args []string) error{
	"call":       helperCall,
	"swap":       helperSwap,
	"answer":     helperAnswer,
	"talk":       helperTalk,
	"send-files": helperSendFiles,
	"forge":      helperForge,
}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if name, ok := strings.CutPrefix(os.Args[1], "helper:"); ok {
			if err := helpers[name](os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

func helper(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, append([]string{"helper:" + name}, args...)...)
	cmd.Stderr = t.Output()
	return cmd
}

// A testServer serves FetchJWTSVID over the transport: the reply is the token
// "secret", if handle returns nil.
type testServer struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	handle func(ctx context.Context, c *Conn) error
}

const peerSecret = "the secret that only the peer may see"

func (s *testServer) FetchJWTSVID(ctx context.Context, _ *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	p, _ := grpcpeer.FromContext(ctx)
	if err := s.handle(ctx, p.AuthInfo.(*Conn)); err != nil {
		return nil, err
	}
	return &workload.JWTSVIDResponse{Svids: []*workload.JWTSVID{{Svid: peerSecret}}}, nil
}

func (s *testServer) FetchX509SVID(_ *workload.X509SVIDRequest, stream workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	p, _ := grpcpeer.FromContext(stream.Context())
	for {
		if err := s.handle(stream.Context(), p.AuthInfo.(*Conn)); err != nil {
			return err
		}
		// Large enough that flow control and write buffers cut it up.
		if err := stream.Send(&workload.X509SVIDResponse{FederatedBundles: map[string][]byte{"x": bytes.Repeat([]byte("x"), 100_000)}}); err != nil {
			return err
		}
	}
}

func challenged(ctx context.Context, c *Conn) error {
	wait, err := c.Challenge()
	if err != nil {
		return err
	}
	return wait(ctx)
}

func serve(t testing.TB, handle func(ctx context.Context, c *Conn) error, opts ...grpc.ServerOption) (path string) {
	t.Helper()
	return serveWith(t, defaultConnLimits, handle, opts...)
}

func serveWith(t testing.TB, limits connLimits, handle func(ctx context.Context, c *Conn) error, opts ...grpc.ServerOption) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := ListenAt(path, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(append(opts, grpc.Creds(transportWith(t, limits)))...)
	workload.RegisterSpiffeWorkloadAPIServer(s, &testServer{handle: handle})
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(l)
	}()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
	return path
}

func call(ctx context.Context, cc *grpc.ClientConn) error {
	r, err := workload.NewSpiffeWorkloadAPIClient(cc).FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"a"}})
	if err == nil && r.Svids[0].Svid != peerSecret {
		err = errors.New("another reply")
	}
	return err
}

func dial(t testing.TB, path string) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

func TestStockClientIsServed(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 64, 4096, 32 << 10} {
		t.Run(fmt.Sprintf("with buffers of %d bytes", size), func(t *testing.T) {
			t.Parallel()
			path := serve(t, challenged, grpc.ReadBufferSize(size), grpc.WriteBufferSize(size))
			cc := dial(t, path)
			errs := make(chan error, 200)
			for range cap(errs) {
				go func() { errs <- call(t.Context(), cc) }()
			}
			for range cap(errs) {
				if err := <-errs; err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestChallengesGoBetweenTheFramesOfABusyStream(t *testing.T) {
	t.Parallel()
	path := serve(t, challenged, grpc.WriteBufferSize(1000))
	cc := dial(t, path)
	stream, err := workload.NewSpiffeWorkloadAPIClient(cc).FetchX509SVID(t.Context(), &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		if err := call(t.Context(), cc); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOtherProcessIsServedAsItself(t *testing.T) {
	t.Parallel()
	pids := make(chan int, 1)
	path := serve(t, func(ctx context.Context, c *Conn) error {
		pids <- c.Process().PID()
		return challenged(ctx, c)
	})
	cmd := helper(t, "call", path)
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if got, want := <-pids, cmd.Process.Pid; got != want {
		t.Errorf("peer has PID %d, want %d", got, want)
	}
}

func helperCall(args []string) error {
	cc, err := grpc.NewClient("unix://"+args[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	return call(context.Background(), cc)
}

// TestExecSwapIsRefused runs the attack: a process asks, leaves the socket to
// a child and becomes a trusted program, all with a stock client.
func TestExecSwapIsRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		child string
	}{
		{"child answers the challenge itself", "answer"},
		{"child goes on with a client of its own", "talk"},
		{"child stays silent", "silent"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			verdicts := make(chan error, 1)
			path := serve(t, func(ctx context.Context, c *Conn) error {
				err := swapped(c.Process().PID())
				if err != nil {
					t.Error(err)
				}
				ctx, cancel := context.WithTimeout(ctx, time.Second)
				defer cancel()
				err = challenged(ctx, c)
				verdicts <- err
				return err
			})
			cmd := helper(t, "swap", path, tt.child)
			cmd.WaitDelay = 5 * time.Second // a child that is not cut off must not hang the test
			var out bytes.Buffer
			cmd.Stdout = &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if err := <-verdicts; err == nil {
				t.Error("the trusted program, which never spoke, passed the challenge")
			}
			cmd.Process.Kill()
			cmd.Wait() // until the child has closed the pipe, too
			if bytes.Contains(out.Bytes(), []byte(peerSecret)) {
				t.Error("the child has read the secret")
			}
		})
	}
}

// swapped waits until the process runs the trusted program.
func swapped(pid int) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.After(10 * time.Second)
	for {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil {
			return err
		}
		if string(comm) == "sleep\n" {
			return nil
		}
		select {
		case <-tick.C:
		case <-limit:
			return errors.New("the program was not swapped")
		}
	}
}

// helperSwap asks with a stock client, and once the request is on its way
// starts the child with the connection and becomes sleep.
func helperSwap(args []string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: args[0]}); err != nil {
		return err
	}
	socket := os.NewFile(uintptr(fd), "socket")
	conn, err := net.FileConn(socket)
	if err != nil {
		return err
	}
	spy := &spyConn{Conn: conn, asked: make(chan struct{})}
	cc, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return spy, nil }))
	if err != nil {
		return err
	}
	go call(context.Background(), cc)
	<-spy.asked
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	if args[1] != "silent" {
		child := exec.Command(exe, "helper:"+args[1])
		child.ExtraFiles = []*os.File{socket}
		child.Stdout = os.Stdout
		if err := child.Start(); err != nil {
			return err
		}
	}
	if args[1] == "silent" { // the trusted program inherits it and knows nothing of it
		if err := unix.Dup3(int(socket.Fd()), 100, 0); err != nil {
			return err
		}
	}
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		return err
	}
	return syscall.Exec(sleep, []string{"sleep", "60"}, nil)
}

// A spyConn tells when the client has sent a request.
type spyConn struct {
	net.Conn
	sent  []byte
	asked chan struct{}
}

func (c *spyConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	had := bytes.Contains(c.sent, []byte("\n\x01a"))
	c.sent = append(c.sent, p[:n]...)
	if !had && bytes.Contains(c.sent, []byte("\n\x01a")) { // the message: audience "a"
		close(c.asked)
	}
	return n, err
}

// helperAnswer answers every PING on descriptor 3 and prints what it reads.
func helperAnswer([]string) error {
	conn, err := net.FileConn(os.NewFile(3, "socket"))
	if err != nil {
		return err
	}
	r := io.TeeReader(conn, os.Stdout)
	framer := http2.NewFramer(conn, r)
	for {
		f, err := framer.ReadFrame()
		if err != nil {
			return nil
		}
		if p, ok := f.(*http2.PingFrame); ok && !p.IsAck() {
			framer.WritePing(true, p.Data)
		}
	}
}

// helperTalk sends a request of its own on descriptor 3.
func helperTalk([]string) error {
	conn, err := net.FileConn(os.NewFile(3, "socket"))
	if err != nil {
		return err
	}
	framer := http2.NewFramer(conn, conn)
	framer.WritePing(false, [8]byte{1})
	io.Copy(os.Stdout, conn)
	return nil
}

// TestForgedSenderIsRefused runs the exec swap in a user and PID namespace of
// the attacker's own, where the child has the privilege to send in the name of
// the trusted program. The kernel, and so the transport, believes it; only
// attestation, which looks at the namespace, does not.
func TestForgedSenderIsRefused(t *testing.T) {
	t.Parallel()
	if out, err := exec.Command("unshare", "-Urpf", "true").CombinedOutput(); err != nil {
		t.Skipf("no user namespaces here: %s", out)
	}
	attester := process.NewAttester(process.Options{})
	for _, tt := range []struct {
		name string
		uid  uint32
	}{
		{"as root", 0},
		{"as an ordinary user", 65534},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var as *syscall.Credential
			if os.Geteuid() == 0 {
				as = &syscall.Credential{Uid: tt.uid, Gid: tt.uid}
			} else if tt.uid == 0 {
				t.Skip("needs root")
			}
			attestErr, challengeErr := make(chan error, 1), make(chan error, 1)
			path := serve(t, func(ctx context.Context, c *Conn) error {
				if err := swapped(c.Process().PID()); err != nil {
					t.Error(err)
				}
				_, err := attester.Attest(ctx, c.Process())
				for errors.Is(err, process.ErrChanged) && ctx.Err() == nil { // the exec is not over yet
					_, err = attester.Attest(ctx, c.Process())
				}
				attestErr <- err
				challengeErr <- challenged(ctx, c)
				return err
			})
			must(t, os.Chmod(filepath.Dir(path), 0o755))
			must(t, os.Chmod(filepath.Dir(filepath.Dir(path)), 0o755))
			self := helper(t, "swap", path, "forge")
			cmd := exec.CommandContext(t.Context(), "unshare", append([]string{"-Urpf"}, copySelf(t, self.Args)...)...)
			cmd.Stderr = t.Output()
			cmd.WaitDelay = 5 * time.Second
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as, Setpgid: true}
			var out bytes.Buffer
			cmd.Stdout = &out
			must(t, cmd.Start())
			err := <-attestErr
			if e, ok := errors.AsType[*process.Error](err); !ok || e.Fact != "PID namespace" {
				t.Errorf("Attest returned %v, want an error about the PID namespace", err)
			}
			if err := <-challengeErr; err != nil {
				t.Errorf("the attack itself did not work: %v", err)
			}
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			cmd.Wait()
			if bytes.Contains(out.Bytes(), []byte(peerSecret)) {
				t.Error("the child has read the secret")
			}
		})
	}
}

// copySelf returns the command with the test binary where every user may run
// it.
func copySelf(t *testing.T, args []string) []string {
	t.Helper()
	dir, err := os.MkdirTemp("", "workloadapi-test-*")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	out, err := exec.Command("cp", args[0], dir+"/self").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return append([]string{dir + "/self"}, args[1:]...)
}

// helperForge does as helperAnswer, in the name of process 1.
func helperForge([]string) error {
	f, err := net.FileConn(os.NewFile(3, "socket"))
	if err != nil {
		return err
	}
	conn := f.(*net.UnixConn)
	framer := http2.NewFramer(forger{conn}, io.TeeReader(conn, os.Stdout))
	for {
		f, err := framer.ReadFrame()
		if err != nil {
			return nil
		}
		if p, ok := f.(*http2.PingFrame); ok && !p.IsAck() {
			framer.WritePing(true, p.Data)
		}
	}
}

type forger struct{ conn *net.UnixConn }

func (f forger) Write(p []byte) (int, error) {
	n, _, err := f.conn.WriteMsgUnix(p, unix.UnixCredentials(&unix.Ucred{Pid: 1}), nil)
	return n, err
}

func TestMessageWithFileDescriptorsEndsTheConnection(t *testing.T) {
	t.Parallel()
	path := serve(t, challenged)
	if err := helper(t, "send-files", path).Run(); err != nil {
		t.Error(err)
	}
}

// helperSendFiles sends the client preface with a descriptor, and expects to
// be cut off.
func helperSendFiles(args []string) error {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: args[0], Net: "unix"})
	if err != nil {
		return err
	}
	if _, _, err := conn.WriteMsgUnix([]byte(http2.ClientPreface), unix.UnixRights(0), nil); err != nil {
		return err
	}
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err = io.Copy(io.Discard, conn)
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return errors.New("the connection stays open")
	}
	return nil
}

func TestUserWithTooManyConnectionsIsRefused(t *testing.T) {
	t.Parallel()
	path := serveWith(t, connLimits{total: 10, each: 3, strangers: 10, eachOfThem: 10, strangerFor: time.Hour}, challenged)
	var conns []*net.UnixConn
	for range 4 {
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		conns = append(conns, c)
	}
	var refused []int
	for i, c := range conns {
		if _, err := c.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
			refused = append(refused, i)
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if len(refused) != 1 {
		t.Fatalf("connections %v of 4 were refused, want one", refused)
	}
	conns[slices.IndexFunc([]int{0, 1, 2, 3}, func(i int) bool { return i != refused[0] })].Close()
	for deadline := time.Now().Add(5 * time.Second); ; {
		cc := dial(t, path)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		err := call(ctx, cc)
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after one was closed, another is still refused: %v", err)
		}
	}
}
