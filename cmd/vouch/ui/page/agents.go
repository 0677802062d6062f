package page

import (
	"cmp"
	"fmt"
	"html/template"
	"maps"
	"slices"
	"strings"

	"github.com/vouchd/vouchd/cmd/vouch/ui/history"
	"github.com/vouchd/vouchd/cmd/vouch/ui/plot"
)

// How many of each are shown.
const (
	maxAgents   = 200
	maxListed   = 100
	maxRefusals = 25
	maxChips    = 4 // credentials in a row
)

type agentRow struct {
	Name    template.HTML
	URL     string
	State   template.HTML // running, and as what
	Idle    bool
	Pills   []string
	May     []template.HTML // credentials
	MayMore uint64
	Spark   template.HTML
	Did     string
	Refused string
	Cost    string
}

// agents tells of agents.
type agents struct{ *Facts }

// agents are the identities that entries name or the log tells of, those that run first.
func (m *model) agents(f *Facts) {
	ids := agents{f}.identities()
	for i, id := range ids {
		if len(m.Agents) == maxAgents {
			m.More = uint64(len(ids) - maxAgents)
			break
		}
		m.Agents = append(m.Agents, agents{f}.agentRow(i, id))
	}
}

func (f agents) identities() []string {
	all := make(map[string]bool)
	for _, e := range f.Entries {
		all[e.SPIFFEID] = true
	}
	for id := range f.Seen.Agents {
		all[id] = true
	}
	for id := range f.Seen.Running {
		all[id] = true
	}
	for _, l := range f.Leases {
		all[l.SPIFFEID] = true
	}
	delete(all, "") // those that were refused
	delete(all, history.Others)
	return slices.SortedFunc(maps.Keys(all), func(a, b string) int {
		return cmp.Or(
			cmp.Compare(min(1, len(f.Seen.Running[b])), min(1, len(f.Seen.Running[a]))),
			cmp.Compare(f.did(b).Done(), f.did(a).Done()),
			cmp.Compare(a, b))
	})
}

// did is what an agent did in the range.
func (f agents) did(id string) *history.Sum {
	if a := f.Seen.Agents[id]; a != nil {
		return &a.Sum
	}
	return new(history.Sum)
}

func (f agents) agentRow(i int, id string) agentRow {
	did := f.did(id)
	r := agentRow{
		Name: f.name(id), URL: f.agentURL(id), Did: done(did), Cost: cost(did), Pills: f.pills(id),
	}
	if did.Refused+did.Failed > 0 {
		r.Refused = number(did.Refused + did.Failed)
	}
	r.State, r.Idle = f.running(id)
	may := f.may(id)
	for _, name := range may[:min(len(may), maxChips)] {
		r.May = append(r.May, label(name, shortLabel))
	}
	r.MayMore = uint64(len(may) - len(r.May))
	if a := f.Seen.Agents[id]; a != nil && did.Done() > 0 {
		values := make([]uint64, len(a.Done))
		for i, n := range a.Done {
			values[i] = uint64(n)
		}
		r.Spark = plot.Bars{
			ID: fmt.Sprintf("a%d", i), Title: "Use by " + plain(name(id, f.domain()), shortLabel) + " over the last " + f.Range.Title,
			Desc: done(did), Values: values,
		}.SVG()
	}
	return r
}

// running says which processes of an agent run.
func (f agents) running(id string) (said template.HTML, idle bool) {
	of := f.Seen.Running[id]
	switch {
	case f.Copied:
		return "", true
	case len(of) == 0:
		return "not running", true
	case len(of) == 1:
		return label(base(of[0].Path), shortLabel) + template.HTML(fmt.Sprintf(` <small class="under">pid %d</small>`, of[0].PID)), false
	}
	return template.HTML(fmt.Sprintf("%d processes", len(of))), false
}

func base(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// may is which credentials entries grant to an agent.
func (f agents) may(id string) (names []string) {
	for _, e := range f.Entries {
		if e.SPIFFEID == id {
			names = append(names, e.Credentials...)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// pills are what there is to know of an agent in a word or two.
func (f agents) pills(id string) (list []string) {
	known := f.Entries == nil
	for _, e := range f.Entries {
		if e.SPIFFEID != id {
			continue
		}
		known = true
		if e.Disabled != nil {
			list = append(list, "disabled")
		}
		if e.Unanchored {
			list = append(list, "any user can have it")
		}
	}
	if !known {
		list = append(list, "no entry")
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// done says what was handed out and done.
func done(s *history.Sum) string {
	var parts []string
	for _, p := range []struct {
		n         uint64
		one, many string
	}{{s.Calls, "call", "calls"}, {s.Leases, "lease", "leases"}, {s.Uses, "use", "uses"}, {s.SVIDs, "SVID", "SVIDs"}} {
		if p.n > 0 {
			parts = append(parts, count(p.n, p.one, p.many))
		}
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}

// cost is what calls took, as far as it is measured.
func cost(s *history.Sum) string {
	if s.Calls == 0 {
		return ""
	}
	said := size(s.Bytes())
	if s.Rows > 0 {
		said += ", " + count(s.Rows, "row", "rows")
	}
	return said + ", " + span(s.Took)
}
