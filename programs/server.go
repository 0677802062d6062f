package programs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/attest/process/file"
	"github.com/vouchd/vouchd/systemd"
)

// Units starts and ends transient units; [systemd.Units] does.
type Units interface {
	Start(ctx context.Context, t systemd.Transient) error
	Run(ctx context.Context, name string) (systemd.Run, error)
	Signal(ctx context.Context, name string, signal int32) error
	Remove(ctx context.Context, name string) error
}

// A Recorder keeps a decision durably before it takes effect.
type Recorder interface {
	// RecordStart is called before a program is started, and for a refusal before the caller
	// is answered. An error keeps the program from starting; for [ErrTooManyRefusals], the
	// caller gets that error instead of the refusal.
	RecordStart(ctx context.Context, s Start) error
}

// ErrTooManyRefusals means that a refusal was counted, not recorded, because its
// user has been refused too often.
var ErrTooManyRefusals = errors.New("too many refusals; wait a moment")

// A Start is a request to start a program, and its outcome.
type Start struct {
	PID       int    // of the caller
	StartTime uint64 // of the caller, in ticks since boot; 0 where /proc hides it
	UID, GID  uint32
	Program   string // as the caller calls it, clipped: untrusted text if Refused is set
	Unit      string // that it will run as
	Defined   string // file:line
	Refused   error  // nil if the program is started
}

// A Server starts programs for those who may start them.
type Server struct {
	Programs func() map[string]*Program // the definitions in force
	Units    Units                      // nil where systemd is not PID 1: every start is refused
	Recorder Recorder
	Vouch    string      // path of the program that makes calls for those with a proxy
	Report   func(error) // gets errors that concern no caller; may be nil

	// Serve returns once there has been no caller for this time and no program is running, if
	// MayEnd, unless nil, agrees; 0: never.
	IdleAfter time.Duration
	MayEnd    func() bool
}

const (
	maxMessage     = 128 << 10 // bytes
	maxArguments   = 1000
	maxRunning     = 256 // programs at a time
	maxPerUser     = 32  // of those
	requestTimeout = 10 * time.Second
	recordTimeout  = 15 * time.Second
	startTimeout   = 30 * time.Second
	removeTimeout  = 30 * time.Second
)

// Serve starts programs until ctx ends, and then ends those that run; or until
// it is idle. It closes the listener.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	places := places{users: make(map[uint32]int)}
	for {
		if s.IdleAfter > 0 {
			l.SetDeadline(time.Now().Add(s.IdleAfter))
		}
		conn, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if places.empty() && (s.MayEnd == nil || s.MayEnd()) {
				return nil // who calls now has the socket's owner start another server
			}
			continue
		}
		if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ECONNABORTED) {
			s.report(fmt.Errorf("accepting callers of vouch run: %w", err))
			select { // until descriptors are free again
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("accepting callers of vouch run: %w", err)
		}
		wg.Go(func() {
			defer conn.Close()
			s.serve(ctx, conn, &places)
		})
	}
}

// places counts the callers.
type places struct {
	mu    sync.Mutex // guards the fields below
	total int
	users map[uint32]int
}

func (p *places) take(uid uint32) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.total >= maxRunning || p.users[uid] >= maxPerUser {
		return fmt.Errorf("too many programs are running: %d, of which user %d started %d", p.total, uid, p.users[uid])
	}
	p.total++
	p.users[uid]++
	return nil
}

func (p *places) empty() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.total == 0
}

func (p *places) free(uid uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total--
	if p.users[uid]--; p.users[uid] == 0 {
		delete(p.users, uid)
	}
}

// serve serves one caller.
func (s *Server) serve(ctx context.Context, conn *net.UnixConn, places *places) {
	peer, err := process.PeerOf(conn)
	if err != nil {
		return // it went away
	}
	defer peer.Close()
	if err := places.take(peer.UID()); err != nil {
		send(conn, reply{Error: err.Error()})
		return
	}
	defer places.free(peer.UID())
	r, err := s.start(ctx, conn, peer)
	if err != nil {
		send(conn, reply{Error: err.Error()})
		return
	}
	send(conn, r)
}

// start starts what the caller asks for, and waits for its end.
func (s *Server) start(ctx context.Context, conn *net.UnixConn, peer *process.Peer) (reply, error) {
	conn.SetReadDeadline(time.Now().Add(requestTimeout))
	var asked request
	files, err := receive(conn, peer, &asked)
	defer closeAll(files)
	if err != nil {
		return reply{}, err
	}
	conn.SetReadDeadline(time.Time{})

	start := Start{PID: peer.PID(), UID: peer.UID(), GID: peer.GID(), Program: clip(asked.Program)}
	start.StartTime, _ = peer.StartTime()
	t, err := s.prepare(ctx, asked, files, &start)
	start.Refused = err
	if err := s.record(ctx, start); err != nil {
		return reply{}, err
	}
	if err != nil {
		return reply{}, err
	}
	// What was recorded of the caller was of this process, if it lives.
	if err := peer.Alive(); err != nil {
		return reply{}, err
	}
	startCtx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	defer s.remove(ctx, t.Name) // also where it is not known whether it was started
	if err := s.Units.Start(startCtx, t); err != nil {
		s.report(err)
		return reply{}, fmt.Errorf("systemd did not start program %s", asked.Program)
	}
	closeAll(files) // the program has them now
	return s.follow(ctx, conn, peer, t.Name)
}

// record has the decision recorded, and returns what to tell the caller where
// it was not.
func (s *Server) record(ctx context.Context, start Start) error {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	err := s.Recorder.RecordStart(ctx, start)
	if err == nil || errors.Is(err, ErrTooManyRefusals) {
		return err
	}
	s.report(fmt.Errorf("recording that user %d had program %q started: %w", start.UID, start.Program, err))
	return errors.New("nothing was started because the decision could not be recorded; an administrator can see why with: journalctl -u vouchd-programs")
}

// prepare decides whether the caller may start the program, and how.
func (s *Server) prepare(ctx context.Context, asked request, files []*os.File, start *Start) (systemd.Transient, error) {
	var none systemd.Transient
	if s.Units == nil {
		return none, errors.New("vouch run requires systemd as PID 1")
	}
	// The same answer for a program that is not there and one that the caller
	// may not start.
	p := s.Programs()[asked.Program]
	if p == nil || !p.mayStart(start.UID) {
		return none, fmt.Errorf("there is no program %q that you may start", clip(asked.Program))
	}
	start.Defined = p.Pos.String()
	if len(asked.Arguments) > 0 && !p.AllowedArguments {
		return none, fmt.Errorf("program %s takes no arguments; its definition would need allow_arguments: true", p.Name)
	}
	if len(asked.Arguments) > maxArguments || slices.ContainsFunc(asked.Arguments, func(a string) bool { return strings.ContainsRune(a, 0) }) {
		return none, fmt.Errorf("more than %d arguments, or one that contains a zero byte", maxArguments)
	}
	if err := checkStreams(files); err != nil {
		return none, err
	}
	if err := p.check(ctx); err != nil {
		return none, fmt.Errorf("program %s: %w", p.Name, err)
	}
	command := append(slices.Clone(p.Command), asked.Arguments...)
	if len(p.Proxy) > 0 {
		if _, _, err := file.Hash(ctx, s.Vouch, p.UID); err != nil {
			return none, fmt.Errorf("program %s: %w", p.Name, err)
		}
		call := []string{s.Vouch, "exec", "--proxy", strings.Join(p.Proxy, ","), "--"}
		if p.Alone {
			call = slices.Insert(call, 2, "--sandbox")
		}
		command = append(call, command...)
	}
	start.Unit = "vouch-run-" + p.Name + "-" + strings.ToLower(rand.Text()[:12]) + ".service"
	return systemd.Transient{
		Name:        start.Unit,
		Description: fmt.Sprintf("%s, started by user %d with vouch run", p.Name, start.UID),
		Slice:       p.Slice(),
		Command:     command,
		User:        p.User,
		Directory:   p.Directory,
		Environment: p.environment(asked.Environment),
		Files:       [3]*os.File(files),
		Alone:       p.Alone,
	}, nil
}

// mayStart reports whether the user, or one of the groups that the group
// database has the user in, may start the program.
func (p *Program) mayStart(uid uint32) bool {
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return false
	}
	if slices.Contains(p.AllowUsers, u.Username) {
		return true
	}
	if len(p.AllowGroups) == 0 {
		return false
	}
	ids, err := u.GroupIds()
	if err != nil {
		return false
	}
	for _, id := range ids {
		if g, err := user.LookupGroupId(id); err == nil && slices.Contains(p.AllowGroups, g.Name) {
			return true
		}
	}
	return false
}

// check returns an error unless the program's files are those of its
// definition and its user can't change them. Attestation looks again, once the
// program runs.
func (p *Program) check(ctx context.Context) error {
	if _, _, err := file.Hash(ctx, p.Command[0], p.UID); err != nil {
		return err
	}
	path := p.Script
	if path == "" {
		path = p.Command[0]
	}
	real, sum, err := file.Hash(ctx, path, p.UID)
	if err != nil {
		return err
	}
	if p.SHA256 != "" && sum != p.SHA256 {
		return fmt.Errorf("%s has digest %s, but its definition at %s requires %s", path, sum, p.Pos, p.SHA256)
	}
	if p.TreeSHA256 == "" {
		return nil
	}
	dir := filepath.Dir(real)
	if _, sum, err = file.HashTree(ctx, dir); err != nil {
		return err
	}
	if sum != p.TreeSHA256 {
		return fmt.Errorf("directory %s has digest %s, but its definition at %s requires %s", dir, sum, p.Pos, p.TreeSHA256)
	}
	return nil
}

// environment returns what the administrator set, and of what the caller
// offers what the definition lets through.
func (p *Program) environment(offered []string) []string {
	env := slices.Clone(p.Environment)
	for _, e := range offered {
		name, value, ok := strings.Cut(e, "=")
		if ok && slices.Contains(p.PassEnvironment, name) && passable(name) == nil && !strings.ContainsAny(value, "\x00\n") {
			env = append(env, e)
		}
	}
	return env
}

// follow passes signals on until the program's main process has ended.
func (s *Server) follow(ctx context.Context, conn *net.UnixConn, peer *process.Peer, unit string) (reply, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer conn.SetReadDeadline(time.Unix(1, 0)) // ends the goroutine
	wg.Go(func() {
		for {
			var sent passed
			files, err := receive(conn, peer, &sent)
			closeAll(files)
			if err != nil {
				cancel(errors.New("the caller has gone"))
				return
			}
			if !passedOn(syscall.Signal(sent.Signal)) {
				continue
			}
			if err := s.Units.Signal(ctx, unit, sent.Signal); err != nil {
				s.report(err)
			}
		}
	})
	return s.wait(ctx, unit)
}

// wait waits for the end of the unit's main process.
func (s *Server) wait(ctx context.Context, unit string) (reply, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		run, err := s.Units.Run(ctx, unit)
		if ctx.Err() != nil {
			return reply{}, context.Cause(ctx)
		}
		if err != nil {
			s.report(err)
			return reply{}, errors.New("systemd could not start the program, or lost track of it")
		}
		if run.Ended {
			return reply{Status: run.Status, Signaled: run.Signal}, nil
		}
		if run.PID != 0 {
			if err := waitForExit(ctx, run.PID); err != nil {
				return reply{}, err
			}
		}
		select { // systemd takes a moment to notice
		case <-tick.C:
		case <-ctx.Done():
			return reply{}, context.Cause(ctx)
		}
	}
}

func waitForExit(ctx context.Context, pid int) error {
	p, err := process.Pin(pid)
	if errors.Is(err, process.ErrPeerGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.Close()
	select {
	case <-p.Done():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// remove ends the unit also if ctx has ended.
func (s *Server) remove(ctx context.Context, unit string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if err := s.Units.Remove(ctx, unit); err != nil {
		s.report(err)
	}
}

func (s *Server) report(err error) {
	if s.Report != nil {
		s.Report(err)
	}
}

// passedOn reports whether a caller's signal is passed on to the program.
func passedOn(sig syscall.Signal) bool {
	switch sig {
	case syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2,
		syscall.SIGWINCH, syscall.SIGCONT:
		return true
	}
	return false
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func clip(s string) string { return s[:min(len(s), maxNameLen)] }
