package spireagent

import (
	"fmt"
	"strings"
	"time"

	"github.com/vouchd/vouchd/identity/spire"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// Report says how it stands with the server, what would happen if that stayed away, and what
// is wrong.
func (a *Agent) Report(st *view.Status, problem func(format string, args ...any)) {
	s := a.State()
	st.Authority.BundleSequence = s.BundleSequence
	v := &view.SPIREStatus{
		Server: s.Server, Agent: s.Agent, Attestor: s.Attestor, AgentNotAfter: s.AgentUntil,
		LastSync: s.LastSync, Online: s.Online, Since: s.Since, Banned: s.Banned,
		X509Until: s.X509Until, JWTUntil: s.JWTUntil, EntriesUntil: s.EntriesUntil,
	}
	st.Authority.SPIRE = v
	st.Entries = view.EntriesStatus{Dir: "SPIRE server " + s.Server, Loaded: s.LastSync}
	if s.Failure != nil {
		v.Error = s.Failure.Error()
	}
	if p := serverProblem(s); p != "" {
		problem("%s", p)
	}
	if a.own != nil {
		a.reportOwn(st, v, s.CA, problem)
	}
	if p := a.Grants.State().Problem; p != nil {
		st.Entries.Error = p.Error()
		problem("the grants in %s are not all in force: %v", a.o.Config.GrantsDir, p)
	}
	if n := len(s.Unknown); n > 0 {
		st.Reminders = append(st.Reminders, fmt.Sprintf("entries of the SPIRE server that match nothing here, since this host attests no such selectors: %s", some(s.Unknown)))
	}
	if n := len(s.Unanchored); n > 0 {
		st.Reminders = append(st.Reminders, fmt.Sprintf("entries of the SPIRE server that any user of this machine can match: %s; add a selector that the kernel or systemd alone can arrange, such as systemd:id:… or unix:user:…", some(s.Unanchored)))
	}
	for id, pos := range a.Grants.State().Value.All() {
		if !a.hasEntry(id.String()) {
			st.Reminders = append(st.Reminders, fmt.Sprintf("%v grants credentials to %s, for which the SPIRE server has no entry on this host", pos, id))
			if len(st.Reminders) > maxNamed {
				break
			}
		}
	}
}

// reportOwn says until when this host is a CA, and what that means.
func (a *Agent) reportOwn(st *view.Status, v *view.SPIREStatus, ca spire.CA, problem func(format string, args ...any)) {
	v.DownstreamUntil = ca.NotAfter
	if ca.Failure != nil {
		problem("this host is to be a CA of the SPIRE server's (authority.spire.downstream), which has not made it one, or not anew: %v", ca.Failure)
	}
	if !ca.NotAfter.IsZero() {
		st.Reminders = append(st.Reminders, fmt.Sprintf("this host is a CA of %s until %s (authority.spire.downstream, by entry %s): SPIRE constrains it by nothing, so whoever has this machine's root can be anybody in the trust domain",
			st.TrustDomain, ca.NotAfter.Format(time.RFC3339), ca.Entry))
	}
}

// maxNamed bounds what a status names one by one.
const maxNamed = 20

func some(names []string) string {
	if len(names) <= maxNamed {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:maxNamed], ", "), len(names)-maxNamed)
}

func (a *Agent) hasEntry(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.synced {
		if e.ID.String() == id {
			return true
		}
	}
	return false
}

// serverProblem says what is wrong between this host and the server; empty: nothing that
// lasts.
func serverProblem(s spire.State) string {
	const look = "see journalctl -u vouchd"
	stamp := func(t time.Time) string { return t.Format(time.RFC3339) }
	switch {
	case s.Banned:
		return fmt.Sprintf("SPIRE server %s has banned this host, %s, so nothing is issued; if that was not meant, run spire-server agent evict -spiffeID %[2]s there, and restart vouchd", s.Server, s.Agent)
	case s.Refused:
		return fmt.Sprintf("SPIRE server %s has refused this host, so nothing is issued: %v", s.Server, s.Failure)
	case s.Agent == "" && s.Failure != nil:
		return fmt.Sprintf("SPIRE server %s has not attested this host, so nothing is issued: %v", s.Server, s.Failure)
	case !s.Online && s.Failure != nil:
		until := "nothing is issued any more"
		if time.Now().Before(s.X509Until) {
			until = "X509-SVIDs that it signed are served until " + stamp(s.X509Until) + " at most"
		}
		return fmt.Sprintf("SPIRE server %s has not answered since %s; %s: %v; %s", s.Server, stamp(s.Since), until, s.Failure, look)
	case s.Skew > time.Minute || s.Skew < -time.Minute:
		return fmt.Sprintf("this host's clock is %v off that of SPIRE server %s; set the clock, or what it signs is not valid here", s.Skew.Round(time.Second), s.Server)
	}
	return ""
}
