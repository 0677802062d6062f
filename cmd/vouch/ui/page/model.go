package page

import (
	"cmp"
	"fmt"
	"html/template"
	"net/url"
	"strings"
	"time"

	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// A model is a page in the words that it is to have.
type model struct {
	Style     template.CSS
	Title     string
	Host      template.HTML
	Domain    template.HTML
	About     string // the daemon, or the copy
	Now       string
	ISO       string
	Seconds   int // until the browser asks again; 0: it does not
	Ranges    []link
	RangeText string // "the last 24 hours"
	Overview  string // URL
	Again     link   // refreshes
	Auto      link   // turns refreshing on or off

	Loading  string // how far the log is read; empty: all
	Problems []problem
	Notes    []problem
	Fine     string // what is well, where there are no problems

	Tiles  []tile
	Agents []agentRow
	More   uint64 // agents beyond those

	Copied       bool
	EntriesKnown bool
	LeasesKnown  bool

	Leases     []leaseRow
	MoreLeases uint64
	Calls      []callRow
	MoreCalls  uint64
	Refusals   []refusalRow
	MoreRefuse uint64
	Unusual    []unusualRow

	Plots   []figure
	Steps   []stepRow
	Machine []fact
	LogIs   []fact

	Agent *agentPage // nil: the overview
}

type link struct {
	Text, URL string
	Current   bool
}

type problem struct {
	Text    template.HTML
	Command string
}

type tile struct {
	What, Value, Of, To string
	Bad                 bool
}

type fact struct {
	Name    string
	Value   template.HTML
	Command string
	Bad     bool
}

// url returns that of a page below the base, for the range.
func (f *Facts) url(path, id, name string, refresh time.Duration) string {
	q := url.Values{"range": {name}}
	if id != "" {
		q.Set("id", id)
	}
	if refresh > 0 {
		q.Set("refresh", fmt.Sprint(int(refresh/time.Second)))
	}
	return path + "?" + q.Encode()
}

func (f *Facts) agentURL(id string) string { return f.url("agent", id, f.Range.Name, f.Refresh) }

// everySoOften is how often a page refreshes itself, if it does.
const everySoOften = 30 * time.Second

// frame is what all pages have. Id is the agent that it is about.
func (f *Facts) frame(path, id string) *model {
	m := &model{
		Style: style, Copied: f.Copied, EntriesKnown: f.Entries != nil, LeasesKnown: f.Leases != nil, Host: label(f.Host, shortLabel), Domain: label(f.domain(), shortLabel), ISO: f.Now.Format(time.RFC3339), Now: f.Now.Format("15:04:05 MST"),
		Seconds: int(f.Refresh / time.Second), RangeText: "the last " + f.Range.Title,
		Overview: f.url("./", "", f.Range.Name, f.Refresh), Again: link{Text: "Refresh", URL: f.url(path, id, f.Range.Name, f.Refresh)},
	}
	m.Auto = link{Text: "Refresh every 30 s", URL: f.url(path, id, f.Range.Name, everySoOften)}
	if f.Refresh > 0 {
		m.Auto = link{Text: "Stop refreshing", URL: f.url(path, id, f.Range.Name, 0), Current: true}
	}
	for _, r := range Ranges {
		m.Ranges = append(m.Ranges, link{Text: r.Short, URL: f.url(path, id, r.Name, f.Refresh), Current: r.Name == f.Range.Name})
	}
	switch st := f.Daemon; {
	case f.Copied:
		m.About = "a copy of a log, up to " + f.Now.Format("2 Jan 2006 15:04:05")
	case st != nil:
		m.About = "vouchd " + plain(st.Version, shortLabel) + ", up " + span(f.Now.Sub(st.Started))
	default:
		m.About = "the daemon is away"
	}
	if s := f.Seen.State; !s.CaughtUp && s.Err == nil {
		m.Loading = "Reading the log: " + count(s.Read, "record", "records") + " so far"
		if !s.Last.IsZero() {
			m.Loading += ", up to " + s.Last.In(f.Now.Location()).Format("2 Jan 15:04")
		}
		m.Loading += ". What follows is not complete yet."
		m.Seconds = 2
	}
	return m
}

// domain is the host's trust domain, as far as anybody says.
func (f *Facts) domain() string {
	if f.Daemon != nil {
		return f.Daemon.TrustDomain
	}
	for id := range f.Seen.Agents {
		if rest, ok := strings.CutPrefix(id, "spiffe://"); ok {
			domain, _, _ := strings.Cut(rest, "/")
			return domain
		}
	}
	return ""
}

func (f *Facts) name(id string) template.HTML { return label(name(id, f.domain()), nameLabel) }

// log is a command that reads this log.
func (f *Facts) log(args ...string) string {
	if f.Copied {
		args = append(args, f.Log)
	}
	return command(append([]string{"vouch", "log"}, args...)...)
}

// overview makes the page of all.
func (f *Facts) overview() *model {
	m := f.frame("./", "")
	m.Title = plain(f.Host, shortLabel)
	m.problems(f)
	m.agents(f)
	m.Leases, m.MoreLeases = uses{f}.leases("")
	m.Calls, m.MoreCalls = uses{f}.calls("")
	m.Refusals, m.MoreRefuse = uses{f}.refusals("")
	m.Unusual = uses{f}.unusual("")
	m.plots(f)
	m.Machine, m.LogIs = f.machine(), f.logIs()
	m.tiles(f)
	return m
}

// problems says what is wrong, the worst first.
func (m *model) problems(f *Facts) {
	add := func(command, format string, args ...any) {
		m.Problems = append(m.Problems, problem{label(oneLine(fmt.Sprintf(format, args...)), textLabel), command})
	}
	if f.Away != "" {
		add("vouch doctor", "The daemon does not answer: %s. What follows is from its log alone.", f.Away)
	}
	if r := f.Verified.Report; r != nil && !r.OK {
		add(f.log("verify", "--live"), "The log does not verify: %s.", r.Verdict)
	}
	if f.Verified.Err != "" {
		add(f.log("verify", "--live"), "The log could not be verified: %s.", f.Verified.Err)
	}
	if err := f.Seen.State.Err; err != nil {
		add(f.log("show", "--since", "1h"), "The log cannot be read: %v.", err)
	}
	if st := f.Daemon; st != nil {
		if next := f.Seen.State.Next; st.Log.Records+muchLess < next {
			add("", "The daemon's log has %s, and %s were read: it was begun anew. Run vouch ui again.", count(st.Log.Records, "record", "records"), number(next))
		}
		for _, p := range st.Problems {
			add("", "%s.", sentence(p))
		}
		for _, r := range st.Reminders {
			m.Notes = append(m.Notes, problem{Text: label(oneLine(sentence(r)+"."), textLabel)})
		}
		if st.Node.State == view.NodeFailed && len(st.Problems) == 0 {
			add("vouch status --output json", "The machine does not satisfy its appraisal policy, and nothing is issued.")
		}
	}
	if f.Unread != "" {
		m.Notes = append(m.Notes, problem{label(oneLine("What credentials allow is not known: "+f.Unread+"."), textLabel), "vouch check"})
	}
	m.Fine = "Nothing is wrong that vouchd knows of."
	if f.Copied {
		m.Fine = "The log can be read."
	}
}

// muchLess is more than a log grows between a question to the daemon and a look at it.
const muchLess = 10_000

// oneLine puts the lines of a message behind each other.
func oneLine(s string) string { return strings.ReplaceAll(strings.TrimSpace(s), "\n", "; ") }

func sentence(s string) string {
	s = strings.TrimSuffix(s, ".")
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

func (m *model) tiles(f *Facts) {
	t := &f.Seen.Total
	running := uint64(0)
	for _, of := range f.Seen.Running {
		if len(of) > 0 {
			running++
		}
	}
	if !f.Copied {
		m.Tiles = append(m.Tiles,
			tile{What: things(running, "agent running", "agents running"), Value: number(running), Of: "of " + number(uint64(len(m.Agents))+m.More), To: "#agents"},
		)
	}
	if m.LeasesKnown {
		n := uint64(len(f.Leases))
		m.Tiles = append(m.Tiles, tile{What: things(n, "lease held", "leases held"), Value: number(n), To: "#now"})
	}
	m.Tiles = append(m.Tiles,
		tile{What: things(uint64(len(f.Seen.Under)), "call under way", "calls under way"), Value: number(uint64(len(f.Seen.Under))), To: "#now"},
		tile{What: "refused", Value: number(t.Refused + t.Failed), Of: "in " + m.RangeText, To: "#refused", Bad: t.Refused+t.Failed > 0},
	)
}

// machine is the evidence of which machine this is and how it has booted.
func (f *Facts) machine() (list []fact) {
	add := func(name, value, command string, bad bool) {
		list = append(list, fact{name, label(value, textLabel), command, bad})
	}
	if st := f.Daemon; st != nil {
		switch n := st.Node; n.State {
		case view.NodePassed:
			add("Appraisal", "passed "+ago(f.Now, n.Checked)+", by "+n.Policy, "", false)
		case view.NodeFailed:
			add("Appraisal", "failed "+ago(f.Now, n.Checked)+", by "+n.Policy+": nothing is issued", "vouch status --output json", true)
		case view.NodeUnknown:
			add("Appraisal", "could not be made: nothing is issued", "vouch doctor", true)
		default:
			add("Appraisal", "none: there is no policy in "+n.Policy, "vouch node policy learn", false)
		}
		keys := "in the TPM"
		if st.Node.Bound {
			keys += ", bound to approved boot states"
		}
		add("Keys", keys, "", false)
		ek := "EK " + short(st.TPM.EKSHA256)
		if st.TPM.EKCertificate {
			ek += ", certified by its maker"
		} else {
			ek += ", without its maker's certificate"
		}
		add("TPM", ek, "", false)
		if e := st.Node.Enrolment; e != nil {
			add("Enrolled", "by root "+short(e.RootSHA256)+", until "+clock(f.Now, e.NotAfter), "", false)
		}
		if v := st.Authority.Vault; v != nil {
			said := "until " + clock(f.Now, v.NotAfter) + ", by " + v.Address
			if v.Serial == "" {
				said = "not yet, by " + v.Address
			}
			if v.Error != "" {
				said += "; " + v.Error
			}
			add("Certified", said, "", v.Error != "")
		}
		if a := st.Authority; a.IssuingCAKeyID != "" {
			add("Issuing CA", short(a.IssuingCAKeyID)+", until "+clock(f.Now, a.IssuingCANotAfter), "", false)
		}
	}
	if n := len(f.Seen.Boot); n > 0 {
		b := f.Seen.Boot[n-1]
		add("Boot state", "PCRs "+cmp.Or(short(b.PCRSHA256), "not recorded")+", reset count "+fmt.Sprint(b.Resets)+", since "+clock(f.Now, b.Time), f.log("explain", fmt.Sprint(b.Index)), !b.Passed)
		changes := 0
		for _, b := range f.Seen.Boot {
			if len(b.Changed) == 0 {
				continue
			}
			if changes++; changes <= maxChanges {
				add("Changed", clock(f.Now, b.Time)+": "+shorter(strings.Join(b.Changed, ", ")), f.log("explain", fmt.Sprint(b.Index)), false)
			}
		}
		if changes == 0 {
			add("Changed", "not since "+clock(f.Now, f.Seen.State.Begins), "", false)
		}
	}
	return list
}

// maxChanges bounds the changes of the boot state that are listed.
const maxChanges = 5

// staleAnchor is how old the last anchor may be while there are younger records. The daemon
// makes one a minute.
const staleAnchor = 5 * time.Minute

// logIs is how the log is.
func (f *Facts) logIs() (list []fact) {
	add := func(name, value, command string, bad bool) {
		list = append(list, fact{name, label(value, textLabel), command, bad})
	}
	s, v := f.Seen.State, f.Verified
	switch {
	case v.Report != nil:
		add("Verified", ago(f.Now, v.Done)+": "+v.Report.Verdict, f.log("verify", "--live"), !v.Report.OK)
	case v.Running:
		add("Verified", "being verified, for "+span(f.Now.Sub(v.Began)), "", false)
	case v.Err != "":
		add("Verified", "could not be: "+v.Err, f.log("verify", "--live"), true)
	default:
		add("Verified", "not yet", f.log("verify", "--live"), false)
	}
	if !s.Last.IsZero() {
		add("Last record", ago(f.Now, s.Last)+", number "+number(s.Next-1), "", false)
	}
	if !s.Anchor.IsZero() {
		late := s.Last.Sub(s.Anchor) > staleAnchor
		add("Last anchor", ago(f.Now, s.Anchor)+": the TPM binds the first "+count(s.Anchored, "record", "records"), "", late)
	}
	if s.Unbound != "" {
		add("Not anchored", s.Unbound, "", true)
	}
	if st := f.Daemon; st != nil {
		l := st.Log
		add("Checkpoint", count(l.Records, "record", "records")+", root "+short(l.RootSHA256), "", false)
		if l.MaxBytes > 0 {
			add("On disk", size(uint64(max(l.DiskBytes, 0)))+" of "+size(uint64(l.MaxBytes)), "", l.DiskBytes > l.MaxBytes/5*4)
		}
		for _, w := range l.Witnesses {
			said := "signed " + count(w.Records, "record", "records") + ", " + ago(f.Now, w.Time)
			if w.Error != "" {
				said += "; " + w.Error
			}
			add("Witness "+plain(w.Name, shortLabel), said, "", w.Error != "")
		}
	}
	add("Kept here", "since "+clock(f.Now, s.Begins), "", false)
	return append(list, fact{Name: "Where", Value: label(f.Log, lineLabel)})
}
