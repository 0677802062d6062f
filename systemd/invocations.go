package systemd

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// An Invocation is one run of a system unit, from its start to the stop that
// follows.
type Invocation struct {
	Unit string
	ID   string // 32 hexadecimal digits, as [Unit.InvocationID]
}

// ErrEnded means that an invocation is over.
var ErrEnded = errors.New("the unit has stopped, or has started anew")

// Invocations reports when invocations end: when systemd has stopped the unit, whatever
// processes that leaves behind, when it restarts it, or when it counts the unit as
// active though none of its processes is left. Its methods are safe for concurrent use.
//
// systemd's own signals report the first two, and the kernel (cgroup.events, cgroups(7))
// the last. If control groups of version 2 are not mounted, an active unit without
// processes is taken to continue.
type Invocations struct {
	units  *Units
	groups *fsnotify.Watcher // of cgroup.events files
	mount  string            // of the control groups of version 2; "" if there are none
	ctx    context.Context   // ends with Close
	cancel context.CancelFunc
	wake   chan struct{} // there is something to look at
	work   sync.WaitGroup

	connecting sync.Mutex // guards conn, and is held while it is made
	conn       *dbus.Conn // that brings signals; nil until the first watch

	mu      sync.Mutex // guards the fields below, and is never held while systemd is asked
	watched map[Invocation]*invocationWatch
	look    map[Invocation]bool // of watched, those that may have ended
}

// An invocationWatch is an invocation that is being waited for.
type invocationWatch struct {
	ended  chan struct{}
	events string // path of its cgroup.events; "" until it is watched; guarded by mu
}

// NewInvocations returns Invocations, which asks systemd nothing before the
// first watch. The caller closes it, and then the units.
func NewInvocations(units *Units) (*Invocations, error) {
	groups, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watching control groups: %w", err)
	}
	w := &Invocations{
		units:   units,
		groups:  groups,
		mount:   unifiedMount(),
		wake:    make(chan struct{}, 1),
		watched: make(map[Invocation]*invocationWatch),
		look:    make(map[Invocation]bool),
	}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	w.work.Go(w.followGroups)
	w.work.Go(w.lookAtAll)
	return w, nil
}

// unifiedMount returns where the control groups of version 2 are, on hosts that
// have them alone and on those that have both.
func unifiedMount() string {
	for _, path := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if err := unix.Statfs(path, &fs); err == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return path
		}
	}
	return ""
}

// Close ends all watches. Their channels stay open.
func (w *Invocations) Close() error {
	w.cancel()
	err := w.groups.Close()
	w.work.Wait()
	return err
}

// Watch returns a channel that is closed within milliseconds of the end of an
// invocation, or [ErrEnded] if that has been. One invocation has one channel,
// however often it is watched.
func (w *Invocations) Watch(ctx context.Context, of Invocation) (<-chan struct{}, error) {
	if err := w.listen(ctx); err != nil {
		return nil, fmt.Errorf("watching unit %s: %w", of.Unit, err)
	}
	w.mu.Lock()
	watch, again := w.watched[of]
	if !again {
		watch = &invocationWatch{ended: make(chan struct{})}
		w.watched[of] = watch
	}
	w.mu.Unlock()
	// What happens from here on is noticed; what happened before, this finds.
	ended, err := w.check(ctx, of, watch)
	if ended || err != nil && !again {
		w.end(of)
	}
	if err != nil {
		return nil, fmt.Errorf("watching unit %s: %w", of.Unit, err)
	}
	if ended {
		return nil, fmt.Errorf("watching unit %s: %w", of.Unit, ErrEnded)
	}
	return watch.ended, nil
}

// end reports that an invocation has ended, or cannot be watched, which counts as the
// same.
func (w *Invocations) end(of Invocation) {
	w.mu.Lock()
	defer w.mu.Unlock()
	watch := w.watched[of]
	if watch == nil {
		return
	}
	delete(w.watched, of)
	if watch.events != "" {
		w.groups.Remove(watch.events) // an error means that it is gone
	}
	close(watch.ended)
}

// check asks whether an invocation has ended.
func (w *Invocations) check(ctx context.Context, of Invocation, watch *invocationWatch) (ended bool, err error) {
	state, err := w.units.invocation(ctx, of.Unit)
	if err != nil {
		return false, err
	}
	if state.id != of.ID || state.stopped() {
		return true, nil
	}
	events, err := w.watchGroup(watch, state.group)
	if err != nil {
		return false, err
	}
	// A unit that starts or stops may have no process between one command and
	// the next.
	return state.active == "active" && events != "" && empty(events), nil
}

// An invocationState is how far along its life a unit is.
type invocationState struct {
	id          string
	active, sub string // "active", "running"
	group       string // control group, from systemd's root; "" for none
}

func (s invocationState) stopped() bool {
	return s.active == "inactive" || s.active == "failed" || strings.HasPrefix(s.sub, "auto-restart")
}

// invocation asks systemd what has become of a unit.
func (u *Units) invocation(ctx context.Context, name string) (s invocationState, err error) {
	kind, ok := groupIfaces[filepath.Ext(name)]
	if !ok {
		return s, fmt.Errorf("unit %s is of a type without processes", name)
	}
	p, err := u.properties(ctx, query{objectOf(name), unitIface, ""}, query{objectOf(name), kind, "ControlGroup"})
	if err != nil {
		return s, fmt.Errorf("asking systemd about unit %s: %w", name, err)
	}
	s = invocationState{
		id:     hex.EncodeToString(p.bytes("InvocationID")),
		active: p.text("ActiveState"),
		sub:    p.text("SubState"),
		group:  p.text("ControlGroup"),
	}
	return s, p.err
}

// groupIfaces are the interfaces of units that processes can be in.
var groupIfaces = map[string]string{
	".service": serviceIface,
	".scope":   "org.freedesktop.systemd1.Scope",
	".socket":  "org.freedesktop.systemd1.Socket",
	".mount":   "org.freedesktop.systemd1.Mount",
	".swap":    "org.freedesktop.systemd1.Swap",
}

// watchGroup has the kernel tell when the unit's control group changes, unless
// it does already. It returns the file that says how it is, "" if there is none.
func (w *Invocations) watchGroup(watch *invocationWatch, group string) (events string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if watch.events != "" || w.mount == "" || group == "" {
		return watch.events, nil
	}
	events = filepath.Join(w.mount, filepath.Clean("/"+group), "cgroup.events")
	err = w.groups.Add(events)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil // its first process is still to come
	}
	if err != nil {
		return "", fmt.Errorf("control group %s: %w", group, err)
	}
	watch.events = events
	return events, nil
}

// empty reports whether no process is left in a control group and those below.
func empty(events string) bool {
	b, err := os.ReadFile(events)
	if err != nil {
		return true // systemd removes control groups, once they are empty
	}
	return !populated(b)
}

// populated reads the contents of cgroup.events.
func populated(b []byte) bool { return strings.Contains("\n"+string(b), "\npopulated 1\n") }

// followGroups notes what the kernel reports.
func (w *Invocations) followGroups() {
	for {
		select {
		case e, ok := <-w.groups.Events:
			if !ok {
				return
			}
			w.note(func(_ Invocation, watch *invocationWatch) bool { return watch.events == e.Name })
		case _, ok := <-w.groups.Errors:
			if !ok {
				return
			}
			w.note(all) // events were lost
		}
	}
}

func all(Invocation, *invocationWatch) bool { return true }

// note has those that are chosen looked at.
func (w *Invocations) note(chosen func(Invocation, *invocationWatch) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for of, watch := range w.watched {
		if chosen(of, watch) {
			w.look[of] = true
		}
	}
	select {
	case w.wake <- struct{}{}:
	default: // it is awake
	}
}

const (
	// lookTimeout bounds how long systemd may take to answer.
	lookTimeout = 5 * time.Second
	// lookAgain is when a unit is looked at again of which systemd did not
	// answer, and when the connection is tried again.
	lookAgain = time.Second
)

// lookAtAll looks at what was noted, one after the other: who makes a unit
// change a thousand times a second is not looked at more often than that takes.
func (w *Invocations) lookAtAll() {
	for {
		var again <-chan time.Time
		for of, watch := range w.noted() {
			ctx, cancel := context.WithTimeout(w.ctx, lookTimeout)
			ended, err := w.check(ctx, of, watch)
			cancel()
			switch {
			case ended:
				w.end(of)
			case err != nil:
				w.note(func(other Invocation, _ *invocationWatch) bool { return other == of })
				again = time.After(lookAgain)
			}
		}
		if again != nil {
			select {
			case <-again:
			case <-w.ctx.Done():
				return
			}
		}
		select {
		case <-w.wake:
		case <-w.ctx.Done():
			return
		}
	}
}

// noted takes what has been noted for a check.
func (w *Invocations) noted() map[Invocation]*invocationWatch {
	w.mu.Lock()
	defer w.mu.Unlock()
	noted := make(map[Invocation]*invocationWatch, len(w.look))
	for of := range w.look {
		if watch := w.watched[of]; watch != nil {
			noted[of] = watch
		}
	}
	clear(w.look)
	return noted
}

// listen has systemd tell of changes, unless it does already.
func (w *Invocations) listen(ctx context.Context) error {
	w.connecting.Lock()
	defer w.connecting.Unlock()
	if w.conn != nil && w.conn.Connected() {
		return nil
	}
	path := privateSocket // on which systemd sends every signal without a subscription
	if os.Geteuid() != 0 {
		path = busSocket
	}
	conn, err := dial(ctx, path)
	if err != nil {
		return err
	}
	signals := make(chan *dbus.Signal, 256)
	conn.Signal(signals)
	if path == busSocket {
		err = subscribe(ctx, conn)
	}
	if err != nil {
		conn.Close()
		return fmt.Errorf("asking systemd to tell of changes: %w", err)
	}
	if w.ctx.Err() != nil {
		conn.Close()
		return w.ctx.Err()
	}
	w.conn = conn
	w.work.Go(func() { w.follow(conn, signals) })
	return nil
}

func subscribe(ctx context.Context, conn *dbus.Conn) error {
	err := conn.AddMatchSignalContext(ctx,
		dbus.WithMatchSender(service),
		dbus.WithMatchInterface("org.freedesktop.DBus.Properties"),
		dbus.WithMatchMember("PropertiesChanged"),
		dbus.WithMatchPathNamespace(dbus.ObjectPath(strings.TrimSuffix(unitsPath, "/"))),
		dbus.WithMatchArg(0, unitIface),
	)
	if err != nil {
		return err
	}
	return conn.Object(service, managerPath).CallWithContext(ctx, managerIface+".Subscribe", 0).Err
}

// follow notes what systemd reports, until the connection ends.
func (w *Invocations) follow(conn *dbus.Conn, signals <-chan *dbus.Signal) {
	defer conn.Close()
	for {
		select {
		case s := <-signals:
			if s == nil {
				signals = nil // closed with the connection
				continue
			}
			if len(s.Body) > 0 && s.Body[0] == unitIface {
				w.note(func(of Invocation, _ *invocationWatch) bool { return objectOf(of.Unit) == s.Path })
			}
		case <-conn.Context().Done():
			w.listenAgain()
			return
		case <-w.ctx.Done():
			return
		}
	}
}

// listenAgain reconnects after systemd has re-executed itself or the bus was restarted,
// and checks what was missed.
func (w *Invocations) listenAgain() {
	for {
		ctx, cancel := context.WithTimeout(w.ctx, lookTimeout)
		err := w.listen(ctx)
		cancel()
		if err == nil {
			w.note(all)
			return
		}
		select {
		case <-time.After(lookAgain):
		case <-w.ctx.Done():
			return
		}
	}
}
