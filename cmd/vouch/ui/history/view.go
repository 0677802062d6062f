package history

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/vouchd/vouchd/audit/analyst"
)

// A Window is the time that a view is of, in steps.
type Window struct {
	Until time.Time
	Step  time.Duration
	Steps int
}

// From is when the window begins.
func (w Window) From() time.Time { return w.Until.Add(-time.Duration(w.Steps) * w.Step) }

// at returns the step that a minute is in.
func (w Window) at(minute int64) (step int, within bool) {
	since := minute*60 - w.From().Unix()
	step = int(since / int64(w.Step/time.Second))
	return step, since >= 0 && step < w.Steps
}

// maxLooked bounds of how many refusals it is looked whether their process still runs.
const maxLooked = 200

// A View is what a history tells of a window, and of now.
type View struct {
	State     State
	Total     Sum               // of the agent asked for, or of all
	Series    []Sum             // the same, one for each step
	Agents    map[string]*Agent // by SPIFFE ID; the empty one had no identity
	Refusals  []Refusal         // within the window, the newest first
	Under     []Call            // the oldest first
	Running   map[string][]Process
	Anomalies map[string][]string // by SPIFFE ID, since the history begins
	Odd       []string            // of the machine's secrets, the same
	Boot      []analyst.BootState // the same
}

// An Agent is what one identity did in a window.
type Agent struct {
	Sum
	Done        []uint32        // at each step
	Credentials map[string]*Sum // by name
}

// View returns what there is to show of a window. Agent is the SPIFFE ID that its totals are
// of, or empty for those of all.
func (h *History) View(w Window, agent string) *View {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := &View{State: h.state, Series: make([]Sum, w.Steps), Agents: make(map[string]*Agent), Running: h.processes.running(), Anomalies: make(map[string][]string)}
	agents := make(map[uint32]*Agent)
	for _, chunk := range h.minutes.chunks {
		for i := range chunk {
			c := &chunk[i]
			step, within := w.at(c.minute)
			if !within {
				continue
			}
			a := agents[c.identity]
			if a == nil {
				a = &Agent{Done: make([]uint32, w.Steps), Credentials: make(map[string]*Sum)}
				agents[c.identity] = a
			}
			if agent == "" || h.names.text[c.identity] == agent {
				v.Total.add(c)
				v.Series[step].add(c)
			}
			a.Sum.add(c)
			a.Done[step] += c.svids + c.leases + c.uses + c.calls
			if name := h.names.text[c.credential]; name != "" {
				if a.Credentials[name] == nil {
					a.Credentials[name] = new(Sum)
				}
				a.Credentials[name].add(c)
			}
		}
	}
	for n, a := range agents {
		v.Agents[h.names.text[n]] = a
	}
	for _, r := range slices.Backward(h.refusals) {
		if !r.Time.Before(w.From()) && r.Time.Before(w.Until) {
			r.Process.Running = h.opt.Alive != nil && len(v.Refusals) < maxLooked && h.opt.Alive(r.Process)
			v.Refusals = append(v.Refusals, r)
		}
	}
	for c := range maps.Values(h.under) {
		v.Under = append(v.Under, *c)
	}
	slices.SortFunc(v.Under, func(a, b Call) int { return cmp.Compare(a.Index, b.Index) })
	u := h.summary.Usage()
	for _, id := range u.Identities {
		if len(id.Anomalies) > 0 {
			v.Anomalies[strings.Clone(id.SPIFFEID)] = slices.Clone(id.Anomalies)
		}
	}
	for _, s := range u.Secrets {
		if s.Former > 0 {
			v.Odd = append(v.Odd, fmt.Sprintf("secret %s: a value that had been replaced or removed was handed out %s; an older copy of it was put back", s.Name, analyst.Times(s.Former)))
		}
	}
	v.Boot = slices.Clone(u.Boot)
	return v
}
