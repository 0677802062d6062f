package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxResponseLen bounds a response, in bytes; TPMs answer with at most 4096.
const maxResponseLen = 4096

// A link carries one command at a time. After an error it can no longer be used.
type link interface {
	exchange(ctx context.Context, command []byte) ([]byte, error)
	Close() error
}

// resolve chooses how to reach the address.
func (t *TPM) resolve() error {
	if path, ok := strings.CutPrefix(t.address, "unix:"); ok {
		if len(path) > 107 {
			return fmt.Errorf("a Unix socket's path has at most 107 bytes, not %d", len(path))
		}
		// An swtpm serves one connection at a time.
		t.perOp = true
		t.open = func(ctx context.Context) (link, error) { return dialSocket(ctx, path) }
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %w", err, ErrNoTPM)
		}
		return nil
	}
	name := filepath.Base(t.address)
	if filepath.Dir(t.address) != "/dev" || !strings.HasPrefix(name, "tpm") {
		return errors.New("want /dev/tpmrm0, /dev/tpm0 or unix:PATH")
	}
	t.managed = strings.HasPrefix(name, "tpmrm")
	t.open = func(ctx context.Context) (link, error) { return openDevice(ctx, t.address) }
	// The kernel makes tpmrmN for a TPM 2.0 only, so ask about tpmN first.
	number := strings.TrimLeft(name, "tprm")
	version, err := os.ReadFile("/sys/class/tpm/tpm" + number + "/tpm_version_major")
	if err == nil && strings.TrimSpace(string(version)) == "1" {
		return ErrTPM12
	}
	if _, err := os.Stat(t.address); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", err, ErrNoTPM)
	}
	return nil
}

// A socket is a connection to an swtpm.
type socket struct{ conn net.Conn }

func dialSocket(ctx context.Context, path string) (link, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, fmt.Errorf("%w: %w", err, ErrNoTPM)
	}
	if err != nil {
		return nil, err
	}
	return socket{conn}, nil
}

func (s socket) Close() error { return s.conn.Close() }

func (s socket) exchange(ctx context.Context, command []byte) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { s.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := s.conn.Write(command); err != nil {
		return nil, err
	}
	response := make([]byte, headerLen, 512)
	if _, err := io.ReadFull(s.conn, response); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(response[2:])
	if n < headerLen || n > maxResponseLen {
		return nil, fmt.Errorf("response claims %d bytes", n)
	}
	response = append(response, make([]byte, n-headerLen)...)
	_, err := io.ReadFull(s.conn, response[headerLen:])
	return response, err
}

// A device is an open /dev/tpmrm0 or /dev/tpm0, used without blocking: a
// blocked read of a TPM that hangs could not be given up.
type device struct{ fd int }

func openDevice(ctx context.Context, path string) (link, error) {
	for wait := firstBackOff; ; wait = min(2*wait, longestBackOff) {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err == nil {
			return device{fd}, nil
		}
		// /dev/tpm0 has one user at a time, perhaps ourselves: a device that
		// was given up closes when its last command is done.
		if err == unix.EINTR || err == unix.EBUSY && pause(ctx, wait) == nil {
			continue
		}
		if err == unix.ENOENT || err == unix.ENXIO || err == unix.ENODEV {
			return nil, fmt.Errorf("opening %s: %w: %w", path, err, ErrNoTPM)
		}
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
}

// Close does not wait for a command that still runs; the kernel does.
func (d device) Close() error {
	go unix.Close(d.fd)
	return nil
}

// exchange writes the command, waits for the response and reads it whole. The
// kernel answers a read before the response is there with nothing, so poll
// says when.
func (d device) exchange(ctx context.Context, command []byte) ([]byte, error) {
	n, err := retryInterrupted(func() (int, error) { return unix.Write(d.fd, command) })
	if err != nil {
		return nil, fmt.Errorf("writing command: %w", err)
	}
	if n != len(command) {
		return nil, io.ErrShortWrite
	}
	const slice = 10 // milliseconds between looks at the context
	for {
		fds := []unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}}
		ready, err := retryInterrupted(func() (int, error) { return unix.Poll(fds, slice) })
		if err != nil {
			return nil, fmt.Errorf("waiting for response: %w", err)
		}
		if ready > 0 {
			break
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	response := make([]byte, maxResponseLen)
	n, err = retryInterrupted(func() (int, error) { return unix.Read(d.fd, response) })
	if err != nil {
		return nil, fmt.Errorf("reading response: %w", err)
	}
	return response[:n], nil
}

func retryInterrupted(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return n, err
		}
	}
}
