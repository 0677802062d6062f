package programs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// An Exit is how a program ended that was started by the daemon.
type Exit struct {
	Status int
	Signal syscall.Signal // that ended it, or 0
}

// Code returns the exit code to end with, as a shell counts: 128 and the signal
// for a program that a signal has ended.
func (e Exit) Code() int {
	if e.Signal != 0 {
		return 128 + int(e.Signal)
	}
	return e.Status
}

// Run has the daemon start a program with the given standard streams and waits for it to end,
// passing on the signals that this process gets in the meantime. From the environment, the
// daemon takes what the program's definition allows. When ctx ends, the daemon ends the
// program.
func Run(ctx context.Context, socket, program string, arguments, environment []string, streams [3]*os.File) (Exit, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unixpacket", socket)
	if err != nil {
		return Exit{}, fmt.Errorf("reaching the daemon: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	u := conn.(*net.UnixConn)

	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGCONT)
	defer signal.Stop(signals)

	if err := ask(u, request{program, arguments, environment}, streams); err != nil {
		return Exit{}, fmt.Errorf("asking the daemon to start %s: %w", program, err)
	}
	ended := make(chan struct{})
	defer close(ended)
	go passOn(u, signals, ended)
	exit, err := await(u)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return Exit{}, fmt.Errorf("running %s: %w", program, err)
	}
	return exit, nil
}

func ask(conn *net.UnixConn, r request, streams [3]*os.File) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if len(b) > maxMessage {
		return fmt.Errorf("arguments and environment exceed %d bytes", maxMessage)
	}
	rights := unix.UnixRights(int(streams[0].Fd()), int(streams[1].Fd()), int(streams[2].Fd()))
	_, _, err = conn.WriteMsgUnix(b, rights, nil)
	return err
}

func passOn(conn *net.UnixConn, signals <-chan os.Signal, ended <-chan struct{}) {
	for {
		select {
		case s := <-signals:
			send(conn, passed{int32(s.(syscall.Signal))})
		case <-ended:
			return
		}
	}
}

func await(conn *net.UnixConn) (Exit, error) {
	b := make([]byte, maxMessage)
	n, err := conn.Read(b)
	if err != nil {
		return Exit{}, err
	}
	if n == 0 {
		return Exit{}, errors.New("the connection to vouchd-programs was closed")
	}
	var r reply
	if err := json.Unmarshal(b[:n], &r); err != nil {
		return Exit{}, err
	}
	if r.Error != "" {
		return Exit{}, errors.New(r.Error)
	}
	if r.Signaled {
		return Exit{Signal: syscall.Signal(r.Status)}, nil
	}
	return Exit{Status: r.Status}, nil
}
