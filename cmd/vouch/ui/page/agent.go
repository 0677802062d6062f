package page

import (
	"fmt"
	"html/template"
	"strings"
	"time"
)

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
	did := agents{f}.did(id)
	a := &agentPage{
		ID: label(id, 2048), Pills: agents{f}.pills(id), Did: done(did), Cost: cost(did),
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
	a.May = agents{f}.mayUse(id)
	a.Known = len(a.Entries) > 0 || f.Seen.Agents[id] != nil || len(a.Processes) > 0
	m.Agent = a
	m.Leases, m.MoreLeases = uses{f}.leases(id)
	m.Calls, m.MoreCalls = uses{f}.calls(id)
	m.Refusals, m.MoreRefuse = uses{f}.refusals(id)
	m.Unusual = uses{f}.unusual(id)
	m.plots(f)
	return m
}

// duration is the range as a flag takes it.
func (r Range) duration() string {
	return strings.TrimSuffix(strings.TrimSuffix((r.Step*time.Duration(r.Steps)).String(), "0s"), "0m")
}

// mayUse are the credentials that an agent is granted, and those that it used or asked for
// all the same.
func (f agents) mayUse(id string) (rows []credentialRow) {
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
