package page

import (
	"cmp"
	"fmt"
	"html/template"
	"maps"
	"slices"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/cmd/vouch/ui/history"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// uses tells of what is used now, and what was refused.
type uses struct{ *Facts }

type leaseRow struct {
	Agent, Credential, Handle, Upstream, Holder template.HTML
	URL                                         string
	Ends                                        string
	Then                                        string // what becomes of it at its source
	State                                       string // empty: active
	Why                                         template.HTML
	Command                                     string
}

// leases are those held, of an agent or of all; those that are in trouble first.
func (f uses) leases(id string) (rows []leaseRow, more uint64) {
	of := slices.Clone(f.Leases)
	if id != "" {
		of = slices.DeleteFunc(of, func(l view.Lease) bool { return l.SPIFFEID != id })
	}
	rank := map[string]int{"stuck": -2, "revoking": -1}
	slices.SortStableFunc(of, func(a, b view.Lease) int { return cmp.Compare(rank[a.State], rank[b.State]) })
	for _, l := range of {
		if len(rows) == maxListed {
			return rows, uint64(len(of) - maxListed)
		}
		r := leaseRow{
			Agent: f.name(l.SPIFFEID), URL: f.agentURL(l.SPIFFEID), Credential: label(l.Credential, shortLabel),
			Handle: label(l.Handle, shortLabel), Upstream: label(l.Upstream, shortLabel), Ends: f.ends(&l), Then: then(l.Revocation),
			Command: command("vouch", "lease", "revoke", "--identity", l.SPIFFEID, "--credential", l.Credential),
		}
		r.Holder = template.HTML(fmt.Sprintf("pid %d", l.PID))
		if f.Gone[l.PID] {
			r.Holder += ", which has ended"
		}
		if l.Unit != "" {
			r.Holder = label(l.Unit, shortLabel) + `<small class="under">` + r.Holder + `</small>`
		}
		if l.State != "active" {
			r.State = map[string]string{"planned": "being granted", "revoking": "ending", "stuck": "stuck"}[l.State]
			r.State = cmp.Or(r.State, plain(l.State, shortLabel))
			why := l.Reason
			if l.Failure != "" {
				why += fmt.Sprintf("; %s failed, the last with: %s", count(uint64(max(l.Attempts, 0)), "attempt", "attempts"), l.Failure)
			}
			r.Why = label(why, lineLabel)
		}
		rows = append(rows, r)
	}
	return rows, 0
}

// ends says what a lease ends with.
func (f uses) ends(l *view.Lease) string {
	at := clock(f.Now, l.Expires)
	left := l.Expires.Sub(f.Now)
	if left <= 0 {
		return "was to end at " + at
	}
	at += " (" + span(left) + ")"
	switch l.Bind {
	case "process":
		return "with its process, by " + at
	case "unit":
		return "with its unit, by " + at
	}
	return "at " + at
}

// then says what a lease's end is at its source.
func then(revocation string) string {
	switch revocation {
	case "hard":
		return "then revoked at its source"
	case "grant-wide":
		return "then revoked at its source, with all of its grant"
	case "expiry-only":
		return "works at its source until it expires"
	case "none":
		return "works at its source until it is rotated"
	}
	return ""
}

type callRow struct {
	Agent, Credential, What, By template.HTML
	URL                         string
	For                         string
	Command                     string
}

// calls are those under way, the longest first.
func (f uses) calls(id string) (rows []callRow, more uint64) {
	for _, c := range f.Seen.Under {
		if id != "" && c.SPIFFEID != id {
			continue
		}
		if len(rows) == maxListed {
			more++
			continue
		}
		by := label(base(c.Process.Path), shortLabel) + template.HTML(fmt.Sprintf(" <small>pid %d</small>", c.Process.PID))
		rows = append(rows, callRow{
			Agent: f.name(c.SPIFFEID), URL: f.agentURL(c.SPIFFEID), Credential: label(c.Credential, shortLabel), What: label(c.What, lineLabel),
			By: by, For: span(max(0, f.Now.Sub(c.Time))), Command: f.log("explain", fmt.Sprint(c.Index)),
		})
	}
	return rows, more
}

type refusalRow struct {
	Who, What, Why template.HTML
	URL            string
	Failed         bool
	Times          uint64
	When, ISO      string
	By             template.HTML
	Commands       []string
}

// refusals are those of the range, the same ones together, the newest first.
func (f uses) refusals(id string) (rows []refusalRow, more uint64) {
	type same struct{ id, path, what, reason string }
	at := make(map[same]int)
	for _, r := range f.Seen.Refusals {
		if id != "" && r.SPIFFEID != id {
			continue
		}
		k := same{r.SPIFFEID, r.Process.Path, asked(&r), r.Reason}
		if i, ok := at[k]; ok {
			rows[i].Times++
			continue
		}
		if len(rows) == maxRefusals {
			more++
			continue
		}
		at[k] = len(rows)
		row := refusalRow{
			Who: f.name(r.SPIFFEID), What: label(k.what, lineLabel), Why: label(cmp.Or(r.Reason, "no reason was recorded"), textLabel), Failed: r.Failed, Times: 1,
			When: ago(f.Now, r.Time), ISO: r.Time.In(f.Now.Location()).Format("2006-01-02T15:04:05Z07:00"),
			By:       label(r.Process.Path, lineLabel) + template.HTML(fmt.Sprintf(" <small>pid %d, user %d</small>", r.Process.PID, r.Process.UID)),
			Commands: []string{f.log("explain", fmt.Sprint(r.Index))},
		}
		if r.SPIFFEID != "" {
			row.URL = f.agentURL(r.SPIFFEID)
		}
		if r.Process.Running && !r.Failed {
			row.Commands = append(row.Commands, command("vouch", "entry", "explain", fmt.Sprint(r.Process.PID)))
		}
		rows = append(rows, row)
	}
	return rows, more
}

// asked says what was asked for.
func asked(r *history.Refusal) string {
	what := string(r.Event)
	switch r.Event {
	case audit.EventWorkload:
		what = "an identity"
	case audit.EventX509SVID:
		what = "an X509-SVID"
	case audit.EventJWTSVID:
		what = "a JWT-SVID"
	case audit.EventWITSVID:
		what = "a WIT-SVID"
	case audit.EventJWTValidated:
		what = "to validate a JWT-SVID"
	case audit.EventBundle:
		what = "the trust bundle"
	case audit.EventStreamEnd:
		what = "to go on with a stream"
	case audit.EventRun:
		what = "to start a program"
	case audit.EventLeaseIntent, audit.EventLeaseGrant:
		what = "a lease"
	case audit.EventLeaseRenew:
		what = "to renew a lease"
	case audit.EventCall:
		what = "a call"
	}
	if r.Credential != "" {
		what += " of " + r.Credential
		if r.Event == audit.EventCall {
			what = "a call with " + r.Credential
		}
	}
	if r.Call != "" {
		what += ": " + r.Call
	}
	return what
}

type unusualRow struct {
	Who  template.HTML
	URL  string
	What []template.HTML
}

// unusual is what the analyst points out.
func (f uses) unusual(id string) (rows []unusualRow) {
	if id == "" && len(f.Seen.Odd) > 0 {
		r := unusualRow{Who: "This machine"}
		for _, o := range f.Seen.Odd[:min(len(f.Seen.Odd), maxListed)] {
			r.What = append(r.What, label(sentence(o)+".", textLabel))
		}
		rows = append(rows, r)
	}
	for _, of := range slices.Sorted(maps.Keys(f.Seen.Anomalies)) {
		if id != "" && of != id || len(rows) == maxListed {
			continue
		}
		r := unusualRow{Who: f.name(of), URL: f.agentURL(of)}
		for _, a := range f.Seen.Anomalies[of] {
			r.What = append(r.What, label(sentence(a)+".", textLabel))
		}
		rows = append(rows, r)
	}
	return rows
}
