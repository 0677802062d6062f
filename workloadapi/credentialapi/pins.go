package credentialapi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/systemd"
)

// Pins keep the processes that hold leases pinned, beyond the connection
// over which they asked: one file descriptor for each, until it exits. Units
// that hold leases they have watched. The methods are safe for concurrent use.
type Pins struct {
	bootID  string
	units   *systemd.Invocations // nil where systemd is not PID 1
	stopped chan struct{}        // closed by Close
	work    sync.WaitGroup

	mu   sync.Mutex // guards pins
	pins map[pinned]*process.Peer
}

// pinned names a process of this boot.
type pinned struct {
	pid   int
	start uint64 // ticks since boot
}

// NewPins returns pins, which the caller closes after the
// [lease.Manager] that uses them. Units may be nil: then none holds a lease.
func NewPins(units *systemd.Invocations) (*Pins, error) {
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("reading the boot ID: %w", err)
	}
	return &Pins{
		bootID:  strings.TrimSpace(string(bootID)),
		units:   units,
		stopped: make(chan struct{}),
		pins:    make(map[pinned]*process.Peer),
	}, nil
}

// BootID returns the boot that processes are pinned in.
func (ps *Pins) BootID() string { return ps.bootID }

// Close releases the processes.
func (ps *Pins) Close() {
	close(ps.stopped)
	ps.work.Wait()
}

// hold pins the peer that was attested. It returns [process.ErrPeerGone] if that
// has exited.
func (ps *Pins) hold(p *process.Peer, at *process.Attested) (credential.Process, <-chan struct{}, error) {
	exit, err := ps.pin(pinned{at.PID, at.StartTime})
	if err != nil {
		return credential.Process{}, nil, err
	}
	// The PID cannot have been reused while the peer lives.
	if err := p.Alive(); err != nil {
		return credential.Process{}, nil, err
	}
	return credential.Process{PID: at.PID, StartTime: at.StartTime, BootID: ps.bootID, Unit: at.Unit}, exit, nil
}

// stop returns a channel that is closed when the invocation of a unit ends.
func (ps *Pins) stop(ctx context.Context, unit, invocation string) (<-chan struct{}, error) {
	if ps.units == nil {
		return nil, errors.New("systemd is not PID 1, so there are no units")
	}
	return ps.units.Watch(ctx, systemd.Invocation{Unit: unit, ID: invocation})
}

// findTimeout bounds how long systemd is waited for at the daemon's start.
const findTimeout = 10 * time.Second

// Find implements [lease.Processes].
func (ps *Pins) Find(p credential.Process, b credential.Bind) (end <-chan struct{}, alive bool, err error) {
	if p.BootID != ps.bootID {
		return nil, false, nil
	}
	switch b {
	case credential.BindProcess:
		end, err = ps.pin(pinned{p.PID, p.StartTime})
	case credential.BindUnit:
		ctx, cancel := context.WithTimeout(context.Background(), findTimeout)
		defer cancel()
		end, err = ps.stop(ctx, p.Unit, p.Invocation)
	default:
		return nil, false, fmt.Errorf("a lease bound to its %s has no process or unit to find", b)
	}
	if errors.Is(err, process.ErrPeerGone) || errors.Is(err, systemd.ErrEnded) {
		return nil, false, nil
	}
	return end, err == nil, err
}

// pin returns a channel that is closed when the process exits.
func (ps *Pins) pin(id pinned) (<-chan struct{}, error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p := ps.pins[id]; p != nil {
		return p.Done(), nil
	}
	p, err := process.Pin(id.pid)
	if err != nil {
		return nil, err
	}
	start, err := p.StartTime()
	if err == nil && start != id.start {
		err = process.ErrPeerGone // another has its PID
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	done := p.Done()
	ps.pins[id] = p
	ps.work.Go(func() {
		select {
		case <-done:
		case <-ps.stopped:
		}
		ps.mu.Lock()
		delete(ps.pins, id)
		ps.mu.Unlock()
		p.Close()
	})
	return done, nil
}
