package history

import (
	"maps"
	"slices"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/analyst"
)

// A Refusal is something that was asked for and not given.
type Refusal struct {
	Index      uint64
	Time       time.Time
	Event      audit.Event
	Failed     bool // it could not be done, though it was allowed
	SPIFFEID   string
	Credential string
	Call       string // which, if it was one
	Reason     string
	Process    Process
}

// maxRefusals bounds those that are kept one by one.
const maxRefusals = 1000

// refused tells whether a record is that of something that a process asked for and did not
// get.
func refused(l *audit.Leaf) bool {
	return l.Workload != nil && (l.Outcome == audit.Denied || l.Outcome == audit.Failed) && l.Event != audit.EventCallEnd && l.Event != audit.EventReload
}

func (h *History) refuse(l *audit.Leaf) {
	r := Refusal{
		Index: l.Index, Time: l.Time, Event: l.Event, Failed: l.Outcome == audit.Failed, SPIFFEID: l.SPIFFEID,
		Reason: analyst.Reason(l), Process: processOf(l),
	}
	if l.Credential != nil {
		r.Credential = l.Credential.Name
	}
	if l.Call != nil {
		r.Call = analyst.Call(l)
	}
	if len(h.refusals) == maxRefusals {
		h.refusals = append(h.refusals[:0], h.refusals[1:]...)
	}
	h.refusals = append(h.refusals, r)
}

// A Call is one that is under way.
type Call struct {
	Index      uint64
	Time       time.Time
	SPIFFEID   string
	Credential string
	Door       string
	What       string // method and path
	Process    Process
}

// maxUnder bounds the calls under way that are known of.
const maxUnder = 10_000

// calls follows calls from their beginning to what came of them.
func (h *History) calls(l *audit.Leaf) {
	switch {
	case l.Call == nil || l.RequestID == "":
	case l.Event == audit.EventCallEnd:
		delete(h.under, l.RequestID)
	case l.Event == audit.EventCall && l.Outcome == audit.Success && len(h.under) < maxUnder:
		c := &Call{Index: l.Index, Time: l.Time, SPIFFEID: l.SPIFFEID, Door: l.Call.Door, What: analyst.Call(l), Process: processOf(l)}
		if l.Credential != nil {
			c.Credential = l.Credential.Name
		}
		h.under[l.RequestID] = c
	}
}

// A Process is one that the log names.
type Process struct {
	PID       int
	StartTime uint64 // in ticks since boot
	BootID    string
	UID       uint32
	Path      string
	Unit      string
	Seen      time.Time // when it last got something
	Running   bool      // still, as a view is made; of the newest refusals and of those in [View].Running

	identities []string
}

func processOf(l *audit.Leaf) (p Process) {
	if w := l.Workload; w != nil {
		p = Process{PID: w.PID, StartTime: w.StartTime, BootID: l.BootID, UID: w.UID, Path: w.Path, Unit: w.Unit, Seen: l.Time}
	}
	return p
}

// processes are those that got something, by their PID.
type processes struct {
	alive func(Process) bool
	of    map[int]*Process
}

const (
	maxProcesses  = 16_384
	maxIdentities = 16 // of a process
)

func (p *processes) take(l *audit.Leaf) {
	if p.alive == nil || l.Workload == nil || l.SPIFFEID == "" || l.Outcome != audit.Success {
		return
	}
	next := processOf(l)
	known := p.of[next.PID]
	if known == nil || known.StartTime != next.StartTime || known.BootID != next.BootID {
		if known == nil && len(p.of) >= maxProcesses {
			p.forget()
		}
		if known == nil && len(p.of) >= maxProcesses {
			return // as many as that are running
		}
		known = &next
		p.of[next.PID] = known
	}
	known.Path, known.Seen = next.Path, next.Seen
	if len(known.identities) < maxIdentities && !slices.Contains(known.identities, l.SPIFFEID) {
		known.identities = append(known.identities, l.SPIFFEID)
	}
}

// forget forgets the processes that have ended.
func (p *processes) forget() {
	maps.DeleteFunc(p.of, func(_ int, q *Process) bool { return !p.alive(*q) })
}

// running returns the processes that run, by identity.
func (p *processes) running() map[string][]Process {
	if p.alive == nil {
		return nil
	}
	p.forget()
	by := make(map[string][]Process)
	for _, pid := range slices.Sorted(maps.Keys(p.of)) {
		q := *p.of[pid]
		q.Running = true
		for _, id := range q.identities {
			by[id] = append(by[id], q)
		}
	}
	return by
}
