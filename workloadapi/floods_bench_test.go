package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/vouchd/vouchd/workloadapi/gate/gatetest"
)

// helperFlood asks so many times a second until its input ends.
func helperFlood(args []string) error {
	perSecond, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	client, err := workloadapi.New(context.Background(), workloadapi.WithAddr("unix://"+args[0]))
	if err != nil {
		return err
	}
	defer client.Close()
	ended := make(chan struct{})
	go func() { io.Copy(io.Discard, os.Stdin); close(ended) }()
	pace := time.NewTicker(time.Second / time.Duration(perSecond))
	defer pace.Stop()
	fmt.Println("floods")
	for {
		select {
		case <-ended:
			return nil
		case <-pace.C:
			client.FetchJWTSVID(context.Background(), jwtsvid.Params{Audience: "api"}) // refused
		}
	}
}

// programForAll is this program, where every user may run it.
func programForAll(b *testing.B) string {
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	binary, err := os.ReadFile(self)
	if err != nil {
		b.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "floods-*")
	if err == nil {
		b.Cleanup(func() { os.RemoveAll(dir) })
		err = errors.Join(os.Chmod(dir, 0o755), os.WriteFile(dir+"/flooder", binary, 0o755))
	}
	if err != nil {
		b.Fatal(err)
	}
	return dir + "/flooder"
}

// BenchmarkBesideFloods is what a user with an identity waits, alone and beside
// 30 users without one, each of whom asks twenty times a second.
func BenchmarkBesideFloods(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("takes root, to be other users")
	}
	s := startStack(b, gatetest.Entry("/agent", os.Getuid()))
	client := s.client(b.Context())
	flooder := programForAll(b)
	median := func() float64 {
		var took []time.Duration
		for i := range 300 {
			began := time.Now()
			if _, err := client.FetchJWTSVID(b.Context(), jwtsvid.Params{Audience: fmt.Sprint("api-", i)}); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		return float64(took[len(took)/2])
	}
	for b.Loop() {
		quiet := median()
		var ends []func()
		for i := range 30 {
			cmd := exec.CommandContext(b.Context(), flooder, "helper:flood", s.Socket, "20")
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(20001 + i), Gid: 20001}}
			in, err := cmd.StdinPipe()
			if err != nil {
				b.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				b.Fatal(err)
			}
			ends = append(ends, func() { in.Close(); cmd.Wait() })
			if _, err := io.ReadFull(out, make([]byte, 7)); err != nil {
				b.Fatal(err)
			}
		}
		flooded := median()
		for _, end := range ends {
			end()
		}
		b.ReportMetric(quiet, "quiet-p50-ns")
		b.ReportMetric(flooded, "flooded-p50-ns")
		b.ReportMetric(flooded/quiet, "flooded/quiet")
	}
}
