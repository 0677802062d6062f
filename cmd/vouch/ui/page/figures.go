package page

import (
	"fmt"
	"html/template"
	"strings"
	"time"

	"github.com/vouchd/vouchd/cmd/vouch/ui/history"
	"github.com/vouchd/vouchd/cmd/vouch/ui/plot"
)

// A figure is one number over the range.
type figure struct {
	Kind  string // of what, for its colour
	Name  string
	Total string
	Most  string
	Plot  template.HTML
	Axis  []string
}

// A stepRow is a step of the range in which something was done.
type stepRow struct {
	When, ISO                           string
	Calls, Leases, SVIDs, Refused, Cost string
}

// plots are small ones side by side: none needs a legend, or colour to be told apart.
func (m *model) plots(f *Facts) {
	v := f.Seen
	w := f.Range.Window(f.Now)
	for _, p := range []struct {
		kind, name string
		of         func(s *history.Sum) uint64
		said       func(n uint64) string
	}{
		{"use", "Calls", func(s *history.Sum) uint64 { return s.Calls }, number},
		{"use", "Leases and SVIDs", func(s *history.Sum) uint64 { return s.Leases + s.SVIDs }, number},
		{"bad", "Refused or failed", func(s *history.Sum) uint64 { return s.Refused + s.Failed }, number},
		{"cost", "Sent and received", (*history.Sum).Bytes, size},
	} {
		values, tips := make([]uint64, len(v.Series)), make([]string, len(v.Series))
		var most uint64
		at := 0
		for i := range v.Series {
			values[i] = p.of(&v.Series[i])
			if values[i] > most {
				most, at = values[i], i
			}
			tips[i] = f.step(w, i) + ": " + p.said(values[i])
		}
		total := p.said(p.of(&v.Total))
		desc := fmt.Sprintf("%s in the last %s", total, f.Range.Title)
		fig := figure{Kind: p.kind, Name: p.name, Total: total, Axis: f.axis(w)}
		if most > 0 {
			desc += fmt.Sprintf("; the most, %s, %s", p.said(most), f.step(w, at))
			fig.Most = p.said(most) + " in " + span(w.Step)
		}
		fig.Plot = plot.Bars{ID: "p" + fmt.Sprint(len(m.Plots)), Title: p.name + " over time", Desc: desc + ". The table below has the numbers.", Values: values, Tips: tips}.SVG()
		m.Plots = append(m.Plots, fig)
	}
	for i := range v.Series {
		s := &v.Series[i]
		if s.Done()+s.Refused+s.Failed == 0 {
			continue
		}
		m.Steps = append(m.Steps, stepRow{
			When: f.step(w, i), ISO: start(w, i).In(f.Now.Location()).Format(time.RFC3339), Calls: number(s.Calls), Leases: number(s.Leases), SVIDs: number(s.SVIDs),
			Refused: number(s.Refused + s.Failed), Cost: size(s.Bytes()),
		})
	}
}

func start(w history.Window, i int) time.Time { return w.From().Add(time.Duration(i) * w.Step) }

// step says which step of the window it is.
func (f *Facts) step(w history.Window, i int) string {
	from := start(w, i).In(f.Now.Location())
	form := "2 Jan 15:04"
	if w.Step*time.Duration(w.Steps) <= 24*time.Hour && from.Format(time.DateOnly) == f.Now.Format(time.DateOnly) {
		form = "15:04"
	}
	return from.Format(form) + "\u2013" + from.Add(w.Step).Format("15:04")
}

// axis is the window's beginning, middle and end.
func (f *Facts) axis(w history.Window) []string {
	form := "15:04"
	if w.Step*time.Duration(w.Steps) > 24*time.Hour {
		form = "2 Jan"
	}
	here := f.Now.Location()
	end := "now"
	if f.Copied {
		end = "end"
	}
	return []string{w.From().In(here).Format(form), start(w, w.Steps/2).In(here).Format(form), end}
}

// An agentPage is what the page of one agent has beside the rest.
type agentPage struct {
	ID        template.HTML
	Pills     []string
	Disabled  template.HTML // why, and since when
	Known     bool          // the log or an entry names it
	Processes []processRow
	Entries   []entryRow
	May       []credentialRow
	Did       string
	Cost      string
	CutOff    []string // commands
	Show      string
}

type processRow struct {
	Path template.HTML
	Unit template.HTML
	PID  int
	UID  uint32
	Seen string
	Show string
}

type entryRow struct {
	Where     template.HTML
	Selectors []template.HTML
}

type credentialRow struct {
	Name, About, From template.HTML
	Gives             string
	Undefined         bool
	Granted           bool // by an entry that is in force
	Tried             bool // its rules are only tried out
	Rules             []ruleRow
	Did               string
	Refused           string
	Cost              string
}

type ruleRow struct {
	Name, What, Further template.HTML
	Allows              bool
}

// agent makes the page of one.
func (f *Facts) agent(id string) *model {
	m := f.frame("agent", id)
	m.Title = plain(name(id, f.domain()), lineLabel)
	did := f.did(id)
	a := &agentPage{
		ID: label(id, 2048), Pills: f.pills(id), Did: done(did), Cost: cost(did),
		CutOff: []string{command("vouch", "identity", "disable", id), command("vouch", "lease", "revoke", "--identity", id)},
		Show:   f.log("show", "--since", f.Range.duration(), "--spiffe-id", id),
	}
	for _, e := range f.Entries {
		if e.SPIFFEID != id {
			continue
		}
		row := entryRow{Where: label(e.Position, lineLabel)}
		for _, s := range e.Selectors {
			row.Selectors = append(row.Selectors, label(s, lineLabel))
		}
		a.Entries = append(a.Entries, row)
		if d := e.Disabled; d != nil {
			said := fmt.Sprintf("Disabled %s by user %d", ago(f.Now, d.Since), d.By)
			if d.Reason != "" {
				said += ": " + d.Reason
			}
			a.Disabled = label(said+".", textLabel)
			a.CutOff[0] = command("vouch", "identity", "enable", id)
		}
	}
	for _, p := range f.Seen.Running[id] {
		if len(a.Processes) == maxListed {
			break
		}
		a.Processes = append(a.Processes, processRow{
			Path: label(p.Path, lineLabel), Unit: label(p.Unit, shortLabel), PID: p.PID, UID: p.UID, Seen: ago(f.Now, p.Seen),
			Show: command("vouch", "entry", "explain", fmt.Sprint(p.PID)),
		})
	}
	a.May = f.mayUse(id)
	a.Known = len(a.Entries) > 0 || f.Seen.Agents[id] != nil || len(a.Processes) > 0
	m.Agent = a
	m.Leases, m.MoreLeases = f.leases(id)
	m.Calls, m.MoreCalls = f.calls(id)
	m.Refusals, m.MoreRefuse = f.refusals(id)
	m.Unusual = f.unusual(id)
	m.plots(f)
	return m
}

// duration is the range as a flag takes it.
func (r Range) duration() string {
	return strings.TrimSuffix(strings.TrimSuffix((r.Step*time.Duration(r.Steps)).String(), "0s"), "0m")
}

// mayUse are the credentials that an agent is granted, and those that it used or asked for
// all the same.
func (f *Facts) mayUse(id string) (rows []credentialRow) {
	granted := f.may(id)
	names := granted
	seen := make(map[string]bool)
	for _, n := range granted {
		seen[n] = true
	}
	if a := f.Seen.Agents[id]; a != nil {
		names = append(names[:len(names):len(names)], without(a.Credentials, seen)...)
	}
	for i, n := range names {
		if len(rows) == maxListed {
			break
		}
		row := credentialRow{Name: label(n, shortLabel), Granted: i < len(granted), Undefined: f.Unread == "" && !f.Copied, Did: "nothing"}
		for _, d := range f.Defined {
			if d.Name == n {
				row.define(&d)
			}
		}
		if a := f.Seen.Agents[id]; a != nil && a.Credentials[n] != nil {
			s := a.Credentials[n]
			row.Did, row.Cost = done(s), cost(s)
			if s.Refused+s.Failed > 0 {
				row.Refused = number(s.Refused + s.Failed)
			}
		}
		rows = append(rows, row)
	}
	return rows
}

func (r *credentialRow) define(d *Credential) {
	r.Undefined = false
	r.About, r.From = label(d.Description, textLabel), label(d.Kind+", "+d.Upstream, lineLabel)
	if d.Description == "" {
		r.About = ""
	}
	r.Gives = plain(d.Gives, lineLabel) + " for up to " + span(d.Lifetime)
	r.Tried = len(d.Rules) > 0 && !d.Enforced
	for _, rule := range d.Rules {
		r.Rules = append(r.Rules, ruleRow{label(rule.Name, shortLabel), label(rule.What, lineLabel), label(rule.Further, lineLabel), rule.Allows})
	}
}
