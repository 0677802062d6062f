package node

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

func TestOpenSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tpm12 := tpmtest.Start12(t)
	for _, tt := range []struct {
		name, address string
		want          error
		says          string
	}{
		{"no device", "/dev/tpmrm99", ErrNoTPM, "swtpm"},
		{"no socket", "unix:" + filepath.Join(dir, "none"), ErrNoTPM, "vTPM"},
		{"a TPM 1.2", tpm12.Address, ErrTPM12, "TPM 1.2"},
		{"not an address of a TPM", "/etc/passwd", nil, "want /dev/tpmrm0"},
		{"no address", "", nil, "want /dev/tpmrm0"},
		{"a socket's path that is too long", "unix:/" + strings.Repeat("x", 107), nil, "107 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Open(t.Context(), tt.address)
			if err == nil {
				t.Fatalf("Open(%q) succeeded", tt.address)
			}
			if tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("Open(%q) = %v, want %v", tt.address, err, tt.want)
			}
			if !strings.Contains(err.Error(), tt.says) {
				t.Errorf("Open(%q) = %v, which does not mention %q", tt.address, err, tt.says)
			}
		})
	}
}

func TestSocketThatNobodyListensOnIsNoTPM(t *testing.T) {
	t.Parallel()
	real := tpmtest.Start(t)
	real.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := Open(ctx, real.Address); !errors.Is(err, ErrNoTPM) {
		t.Errorf("Open = %v, want %v", err, ErrNoTPM)
	}
}

func TestOperationsTakeTurns(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	running := 0
	for range 16 {
		wg.Go(func() {
			err := tpm.do(t.Context(), "counting", operationLimit, func(tr transport.TPM) error {
				mu.Lock()
				running++
				if running != 1 {
					t.Errorf("%d operations at once", running)
				}
				mu.Unlock()
				_, err := tpm2.GetRandom{BytesRequested: 8}.Execute(tr)
				mu.Lock()
				running--
				mu.Unlock()
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestOperationFlushesWhatItLoaded(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		op   func(transport.TPM) error
	}{
		{"an operation that forgets its object", func(tr transport.TPM) error {
			_, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHNull, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(tr)
			return err
		}},
		{"an operation that fails with a session open", func(tr transport.TPM) error {
			if _, _, err := tpm2.HMACSession(tr, tpm2.TPMAlgSHA256, 16); err != nil {
				return err
			}
			return errors.New("a reason of its own")
		}},
		{"a policy that fails with its session open", func(tr transport.TPM) error {
			_, err := tpm2.GetRandom{BytesRequested: 8}.Execute(tr, tpm2.Policy(tpm2.TPMAlgSHA256, 16,
				func(transport.TPM, tpm2.TPMISHPolicy, tpm2.TPM2BNonce) error { return errors.New("no") }))
			return err
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tpm, real := open(t)
			for range 5 { // one more than the TPM has room for
				tpm.do(t.Context(), "loading", operationLimit, tt.op)
			}
			if left := real.Handles(); len(left) > 0 {
				t.Errorf("handles %x are left", left)
			}
		})
	}
}

func TestOpenFlushesWhatADeadClientLeft(t *testing.T) {
	t.Parallel()
	real := tpmtest.Start(t)
	real.Do(func(tr transport.TPM) error {
		for range 3 {
			_, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHNull, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(tr)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if n := len(real.Handles()); n != 3 {
		t.Fatalf("the dead client left %d handles, want 3", n)
	}
	tpm, err := Open(t.Context(), real.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer tpm.Close()
	if left := real.Handles(); len(left) > 0 {
		t.Errorf("handles %x are left", left)
	}
}

func TestOthersObjectsMakeRoom(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	n := load(t, tpm, store(t))
	real.Do(func(tr transport.TPM) error {
		for range 3 {
			_, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHNull, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(tr)
			if err != nil {
				return err
			}
		}
		return nil
	})
	checkSignature(t, n.Signer())
}

func TestHungTPMIsGivenUp(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	real.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := random(ctx, tpm); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("operation on a hung TPM: %v, want %v", err, context.DeadlineExceeded)
	}
	real.Resume()
	if err := random(t.Context(), tpm); err != nil {
		t.Errorf("after the TPM came back: %v", err)
	}
}

func TestExpiredOperationLeavesNothingLoaded(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	err := tpm.do(ctx, "loading", operationLimit, func(tr transport.TPM) error {
		if _, _, err := tpm2.HMACSession(tr, tpm2.TPMAlgSHA256, 16); err != nil {
			return err
		}
		cancel()
		_, err := tpm2.GetRandom{BytesRequested: 8}.Execute(tr)
		return err
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("operation = %v, want %v", err, context.Canceled)
	}
	if left := real.Handles(); len(left) > 0 {
		t.Errorf("handles %x are left", left)
	}
}

func TestWaitingForTheTPMEndsWithTheContext(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	err := tpm.do(t.Context(), "holding", operationLimit, func(transport.TPM) error {
		done := make(chan error)
		go func() { done <- random(ctx, tpm) }()
		cancel()
		return <-done
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("waiting = %v, want %v", err, context.Canceled)
	}
}

func TestOperationsOutliveARestart(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	interrupted := false
	err := tpm.do(t.Context(), "restarting", operationLimit, func(tr transport.TPM) error {
		if !interrupted {
			interrupted = true
			real.Restart()
		}
		_, err := tpm2.GetRandom{BytesRequested: 8}.Execute(tr)
		return err
	})
	if err != nil {
		t.Errorf("operation across a restart: %v", err)
	}
}

func TestClosedTPMSaysSo(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	tpm.Close()
	if err := random(t.Context(), tpm); !errors.Is(err, ErrClosed) {
		t.Errorf("operation on a closed TPM: %v, want %v", err, ErrClosed)
	}
}

// A TPM that runs its self-test answers TPM_RC_TESTING, and swtpm never does,
// so this is one of the few answers that a test has to make up.
func TestUnreadyTPMIsAskedAgain(t *testing.T) {
	t.Parallel()
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate, tpm2.TPMRCNVUnavailable} {
		t.Run(rc.Error(), func(t *testing.T) {
			t.Parallel()
			real := tpmtest.Start(t)
			tpm, err := Open(t.Context(), unready(t, real, rc, 3))
			if err != nil {
				t.Fatal(err)
			}
			defer tpm.Close()
			if err := random(t.Context(), tpm); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("not for ever", func(t *testing.T) {
		t.Parallel()
		real := tpmtest.Start(t)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, err := Open(ctx, unready(t, real, tpm2.TPMRCRetry, 1<<30))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Open = %v, want %v", err, context.DeadlineExceeded)
		}
	})
}

// unready puts a proxy before a TPM that answers the first n commands of each
// connection with rc.
func unready(t *testing.T, real *tpmtest.TPM, rc tpm2.TPMRC, n int) (address string) {
	t.Helper()
	path := strings.TrimPrefix(real.Address, "unix:") + ".proxy"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				buf := make([]byte, maxResponseLen)
				var tpm net.Conn
				for i := 0; ; i++ {
					k, err := c.Read(buf)
					if err != nil {
						return
					}
					if i < n {
						c.Write([]byte{0x80, 0x01, 0, 0, 0, 10, 0, 0, byte(rc >> 8), byte(rc)})
						continue
					}
					if tpm == nil {
						if tpm, err = net.Dial("unix", strings.TrimPrefix(real.Address, "unix:")); err != nil {
							return
						}
						defer tpm.Close()
					}
					tpm.Write(buf[:k])
					if k, err = tpm.Read(buf); err != nil {
						return
					}
					c.Write(buf[:k])
				}
			})
		}
	})
	return "unix:" + path
}

func TestNonsenseFromTheTPMIsAnError(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		bytes []byte
	}{
		{"a length that is too large", []byte{0x80, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}},
		{"a length that is too small", []byte{0x80, 1, 0, 0, 0, 3, 0, 0, 0, 0}},
		{"a response without its body", []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					c.Read(make([]byte, maxResponseLen))
					c.Write(tt.bytes)
					c.Close()
				}
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			if _, err := Open(ctx, "unix:"+path); err == nil {
				t.Error("Open succeeded")
			}
		})
	}
}

// A device file is written, polled and read; here over a socket, which behaves
// the same and has a real TPM behind it.
func TestDeviceExchangesCommands(t *testing.T) {
	t.Parallel()
	real := tpmtest.Start(t)
	dial := func() (link, error) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: strings.TrimPrefix(real.Address, "unix:")}); err != nil {
			unix.Close(fd)
			return nil, err
		}
		return device{fd}, unix.SetNonblock(fd, true)
	}
	tpm := &TPM{address: "/dev/tpmrm0", queue: make(chan struct{}, 1), open: func(context.Context) (link, error) { return dial() }}
	tpm.queue <- struct{}{}
	defer tpm.Close()
	n := load(t, tpm, store(t))
	checkSignature(t, n.Signer())
	real.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := random(ctx, tpm); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("operation on a hung device: %v, want %v", err, context.DeadlineExceeded)
	}
	real.Resume()
	checkSignature(t, n.Signer())
	real.Restart()
	checkSignature(t, n.Signer())
}
