package page

import (
	"bytes"
	"fmt"
	"html"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/analyst"
	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/cmd/vouch/ui/history"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

var noon = time.Date(2026, 11, 27, 12, 0, 30, 0, time.UTC)

// facts of a host where nothing ever happened, as change has them.
func facts(change func(f *Facts)) *Facts {
	r := RangeOf("24h")
	f := &Facts{Now: noon, Host: "h", Range: r, Log: "/var/lib/vouchd/log", Seen: history.New(history.Options{From: noon.Add(-time.Hour)}).View(r.Window(noon), "")}
	f.Seen.State.CaughtUp = true
	f.Entries, f.Leases = []view.Entry{}, []view.Lease{}
	f.Daemon = &view.Status{TrustDomain: "example.org", Version: "1", Started: noon.Add(-time.Hour)}
	change(f)
	return f
}

func overviewOf(t *testing.T, change func(f *Facts)) string {
	t.Helper()
	var b bytes.Buffer
	if err := Overview(&b, facts(change)); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// seen is the text of a page, with each run of white space one space.
func seen(page string) string {
	_, page, _ = strings.Cut(page, "</style>")
	page = regexp.MustCompile(`</(p|h[1-6]|li|td|th|dt|dd|div|span|code)>`).ReplaceAllString(page, "$0 ")
	return strings.Join(strings.Fields(html.UnescapeString(regexp.MustCompile(`<[^>]*>`).ReplaceAllString(page, ""))), " ")
}

func says(t *testing.T, page string, wants ...string) {
	t.Helper()
	text := seen(page)
	for _, w := range wants {
		if !strings.Contains(text, w) {
			t.Errorf("it does not say %q:\n%s", w, text)
		}
	}
}

func TestAHostWhereNothingHappenedSaysSo(t *testing.T) {
	t.Parallel()
	p := overviewOf(t, func(*Facts) {})
	says(t, p, "No problems", "Nothing is wrong that vouchd knows of.", "No entry names an agent", "No lease is held.", "No call is under way.", "Nothing was refused in the last 24 hours.", "Nothing stands out in the last 30 days.", "Verified not yet vouch log verify --live")
	if strings.Contains(p, "pill bad") || strings.Contains(p, "http-equiv") {
		t.Error("it says that something is wrong, or refreshes itself")
	}
}

func TestProblemsComeFirstWithTheirCommands(t *testing.T) {
	t.Parallel()
	p := overviewOf(t, func(f *Facts) {
		f.Away, f.Entries, f.Leases = "connection refused", nil, nil
		f.Daemon.Problems = []string{"the log is not anchored in the TPM", "a.yaml:1: no\nb.yaml:2: nor this"}
		f.Verified = Verification{Done: noon, Report: &reader.Report{Verdict: "the log does not hold: counter-gap"}}
		f.Seen.State.Err = fmt.Errorf("reading attestation log: permission denied")
		f.Daemon.Reminders = []string{"rotate it"}
		f.Daemon.Log.Records, f.Seen.State.Next = 5, 20_000
	})
	says(t, p, "6 problems Problem The daemon does not answer: connection refused. What follows is from its log alone. vouch doctor",
		"The log does not verify: the log does not hold: counter-gap. vouch log verify --live", "The daemon's log has 5 records, and 20,000 were read: it was begun anew.", "The log is not anchored in the TPM.", "A.yaml:1: no; b.yaml:2: nor this.", "Reminder Rotate it.", "Leases Only the daemon knows.")
	if at := strings.Index(p, `id="problems"`); at < 0 || at > strings.Index(p, `id="agents"`) {
		t.Error("they do not come first")
	}
	if !strings.Contains(p, "<title>(6) h") {
		t.Error("the title does not count them")
	}
}

func TestAnAgentIsShownWithWhatItMayAndDid(t *testing.T) {
	t.Parallel()
	const id = "spiffe://example.org/agent"
	f := facts(func(f *Facts) {
		f.Entries = []view.Entry{{SPIFFEID: id, Credentials: []string{"openai", "db"}, Selectors: []string{"unix:uid:7"}, Position: "a.yaml:2", Unanchored: true}}
		f.Leases = []view.Lease{{SPIFFEID: id, Credential: "db", State: "active", Bind: "process", PID: 7, Handle: "role_7", Upstream: "db.example.org", Expires: noon.Add(time.Minute), Revocation: "hard"}}
		f.Gone = map[int]bool{7: true}
		f.Defined = []Credential{{Name: "openai", Kind: "static", Upstream: "https://api", Gives: "a handle", Lifetime: time.Hour, Enforced: true, Rules: []Rule{{Name: "chat", Allows: true, What: "POST /v1/responses", Further: "content /model gpt"}}}}
		h := history.New(history.Options{From: noon.Add(-time.Hour), Alive: func(history.Process) bool { return true }})
		w := &audit.Workload{PID: 7, StartTime: 1, Path: "/bin/agent"}
		for i, r := range []audit.Record{
			{Event: audit.EventX509SVID, Outcome: audit.Success, SPIFFEID: id, Workload: w},
			{Event: audit.EventCallEnd, Outcome: audit.Success, SPIFFEID: id, Workload: w, Duration: time.Second, RequestID: "1", Credential: &audit.Credential{Name: "openai"}, Call: &audit.Call{Method: "POST", Path: "/v1/responses", Status: 200, Sent: 500, Received: 1500, WithinTTL: true}},
			{Event: audit.EventCall, Outcome: audit.Success, SPIFFEID: id, Workload: w, RequestID: "2", Credential: &audit.Credential{Name: "openai"}, Call: &audit.Call{Method: "GET", Path: "/v1/models", Rule: "models"}},
			{Event: audit.EventCall, Outcome: audit.Denied, Reason: "no rule of openai allows it", SPIFFEID: id, Workload: w, Credential: &audit.Credential{Name: "openai"}, Call: &audit.Call{Method: "POST", Path: "/v1/files"}},
		} {
			h.Take(&audit.Leaf{Index: uint64(40 + i), Time: noon.Add(-20 * time.Second), Record: r})
		}
		h.End()
		f.Seen = h.View(f.Range.Window(f.Now), "")
		f.Seen.Anomalies = map[string][]string{id: {"denied 3 times, served once"}}
	})
	var all, one bytes.Buffer
	if err := Overview(&all, f); err != nil {
		t.Fatal(err)
	}
	if err := Agent(&one, f, id); err != nil {
		t.Fatal(err)
	}
	says(t, all.String(), "1 agent running of 1", "agent any user can have it", "agent pid 7", "db openai", "1 call, 1 SVID", "2.0 kB, 1 s", "role_7 db.example.org", "pid 7, which has ended", "with its process, by 12:01:30 (1 min)",
		"then revoked at its source", "GET /v1/models by rule models", "Refused a call with openai: POST /v1/files no rule of openai allows it", "vouch log explain 43 vouch entry explain 7", "Denied 3 times, served once.")
	says(t, one.String(), "spiffe://example.org/agent", "openai static, https://api · a handle for up to 1 h Did: 1 call; 2.0 kB, 1 s; refused 1", "allow POST /v1/responses chat: content /model gpt", "db not defined Did: nothing",
		"unix:uid:7", "vouch identity disable spiffe://example.org/agent", "vouch log show --since 24h --spiffe-id spiffe://example.org/agent")
}

func TestACopyAsksNoDaemonAndNamesItselfInCommands(t *testing.T) {
	t.Parallel()
	p := overviewOf(t, func(f *Facts) {
		f.Copied, f.Daemon, f.Log = true, nil, "/tmp/a copy"
		f.Seen.State.Last = noon
		f.Seen.Boot = []analyst.BootState{{Index: 3, Time: noon, PCRSHA256: strings.Repeat("ab", 32), Passed: true}}
	})
	says(t, p, "a copy of a log, up to 27 Nov 2026 12:00:30", "vouch log explain 3 '/tmp/a copy'", "PCRs abababababababab…")
	if strings.Contains(p, "agents running") {
		t.Error("it says what runs")
	}
}

func TestALogThatIsBeingReadSaysSoAndComesBack(t *testing.T) {
	t.Parallel()
	p := overviewOf(t, func(f *Facts) { f.Seen.State.CaughtUp, f.Seen.State.Read = false, 120_000 })
	says(t, p, "Reading the log: 120,000 records so far. What follows is not complete yet.")
	if !strings.Contains(p, `http-equiv="refresh" content="2"`) {
		t.Error("it does not come back")
	}
}

// canary is what somebody would put wherever text can be put.
const canary = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m\u202eevil\u200b\x00\xff\n{{.}}"

// TestHostileTextIsVisibleAndNoMarkup: as the daemon sends it, and as the log has it.
func TestHostileTextIsVisibleAndNoMarkup(t *testing.T) {
	t.Parallel()
	for _, text := range []string{canary, audit.Escape(canary), strings.Repeat(canary, 200)} {
		id := "spiffe://example.org/" + text
		f := facts(func(f *Facts) {
			f.Host, f.Log, f.Away, f.Unread = text, text, text, text
			f.Daemon = &view.Status{Version: text, TrustDomain: text, Problems: []string{text}, Reminders: []string{text},
				TPM: view.TPMStatus{EKSHA256: text}, Node: view.NodeStatus{State: view.NodePassed, Policy: text, Enrolment: &view.Enrolment{RootSHA256: text}},
				Authority: view.AuthorityStatus{IssuingCAKeyID: text, Vault: &view.VaultStatus{Address: text, Error: text}}, Log: view.LogStatus{RootSHA256: text, Witnesses: []view.WitnessStatus{{Name: text, Error: text}}}}
			f.Entries = []view.Entry{{SPIFFEID: id, Credentials: []string{text}, Selectors: []string{text}, Position: text, Disabled: &view.Disabled{Reason: text}}}
			f.Leases = []view.Lease{{SPIFFEID: id, Credential: text, State: text, Bind: text, Unit: text, Upstream: text, Handle: text, Revocation: text, Reason: text, Failure: text}}
			f.Defined = []Credential{{Name: text, Kind: text, Upstream: text, Description: text, Gives: text, Rules: []Rule{{Name: text, What: text, Further: text}}}}
			f.Verified = Verification{Report: &reader.Report{Verdict: text}, Err: text}
			f.Seen.State.Unbound, f.Seen.State.Err = text, fmt.Errorf("%s", text)
			p := history.Process{PID: 3, Path: text, Unit: text, Running: true}
			f.Seen.Refusals = []history.Refusal{{Event: audit.Event(text), SPIFFEID: id, Credential: text, Call: text, Reason: text, Process: p, Time: noon}}
			f.Seen.Under = []history.Call{{SPIFFEID: id, Credential: text, What: text, Process: p}}
			f.Seen.Running = map[string][]history.Process{id: {p}}
			f.Seen.Anomalies = map[string][]string{id: {text}}
			f.Seen.Boot = []analyst.BootState{{PCRSHA256: text, Changed: []string{text}}}
			a := &history.Agent{Done: make([]uint32, f.Range.Steps), Credentials: map[string]*history.Sum{text: {Refused: 1}}}
			a.Calls, a.Done[0] = 1, 1
			f.Seen.Agents = map[string]*history.Agent{id: a}
		})
		var all, one bytes.Buffer
		if err := Overview(&all, f); err != nil {
			t.Fatal(err)
		}
		if err := Agent(&one, f, id); err != nil {
			t.Fatal(err)
		}
		for what, p := range map[string]string{"overview": all.String(), "agent": one.String()} {
			_, p, _ = strings.Cut(p, "</style>")
			if m := regexp.MustCompile(`<(script|img)|<[^>]*\sonerror`).FindString(p); m != "" {
				t.Errorf("%s: it has %q", what, m)
			}
			if !utf8.ValidString(p) {
				t.Errorf("%s: it is not UTF-8", what)
			}
			for i, r := range p {
				if r != '\n' && !unicode.IsPrint(r) {
					t.Fatalf("%s: it has %U in %q", what, r, p[max(0, i-60):min(len(p), i+60)])
				}
			}
			if !strings.Contains(p, `<span class="esc">\x1b</span>`) || !strings.Contains(p, `<span class="esc">\u202e</span>`) {
				t.Errorf("%s: escapes are not set apart", what)
			}
			if len(text) > 10_000 && (!strings.Contains(p, `<span class="cut">… `) || len(p) > 500_000) {
				t.Errorf("%s: it is not cut: %d bytes", what, len(p))
			}
		}
	}
}

func TestLabels(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, in, want string }{
		{"nothing", "", ""},
		{"plain", "a b", "<bdi>a b</bdi>"},
		{"markup", "<b>&", "<bdi>&lt;b&gt;&amp;</bdi>"},
		{"a path may break", "/usr/bin", "<bdi>/<wbr>usr/<wbr>bin</bdi>"},
		{"a control", "a\x1bb", `<bdi>a<span class="esc">\x1b</span>b</bdi>`},
		{"the same, escaped by the log", `a\x1bb`, `<bdi>a<span class="esc">\x1b</span>b</bdi>`},
		{"an override", "\u202e", `<bdi><span class="esc">\u202e</span></bdi>`},
		{"no UTF-8", "\xff\xfe", `<bdi><span class="esc">\xff</span><span class="esc">\xfe</span></bdi>`},
		{"no escape", `\xZZ\u12\`, `<bdi>\xZZ\u12\</bdi>`},
		{"a cut by the log", `ab\[+12 bytes]`, `<bdi>ab<span class="esc">\[+12 bytes]</span></bdi>`},
		{"no cut by the log", "\\[+\x01]", `<bdi>\[+<span class="esc">\x01</span>]</bdi>`},
		{"another script", "שלום", "<bdi>שלום</bdi>"},
		{"marks upon marks", "a\u0301\u0301\u0301\u0301\u0301", "<bdi>a\u0301\u0301\u0301" + `<span class="esc">\u0301</span><span class="esc">\u0301</span></bdi>`},
		{"too long", "abcdefghijklm", `<bdi>abcdefghij<span class="cut">… 3 more</span></bdi>`},
		{"cut between escapes", strings.Repeat("\x01", 12), "<bdi>" + strings.Repeat(`<span class="esc">\x01</span>`, 10) + `<span class="cut">… 2 more</span></bdi>`},
	} {
		if got := string(label(tt.in, 10)); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func FuzzLabel(f *testing.F) {
	f.Add(canary, 20)
	f.Add(`\x1b\u202e\U000e0001\\\[+9 bytes]\[+`, 3)
	f.Fuzz(func(t *testing.T, text string, most int) {
		most = max(1, most%1000)
		got := string(label(text, most))
		tag := regexp.MustCompile(`</?bdi>|<wbr>|<span class="(esc|cut)">|</span>`)
		rest := tag.ReplaceAllString(got, "")
		if strings.ContainsAny(rest, `<>"'`) {
			t.Errorf("markup in %q", got)
		}
		for _, r := range rest {
			if r != ' ' && (!unicode.IsPrint(r) || r == utf8.RuneError && !strings.Contains(text, "\uFFFD")) {
				t.Errorf("%U in %q", r, got)
			}
		}
		if len(got) > 60*most+200 {
			t.Errorf("%d bytes of %d characters", len(got), most)
		}
	})
}

func TestCommandsAreQuotedForAShell(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"vouch log explain 3":       {"vouch", "log", "explain", "3"},
		`a '' 'b c' 'it'\''s $(x)'`: {"a", "", "b c", "it's $(x)"},
		`$'it\'s \x1b'`:             {"it's \x1b"},
	} {
		if got := command(args...); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestWords(t *testing.T) {
	t.Parallel()
	for got, want := range map[string]string{
		number(0): "0", number(1234567): "1,234,567", count(1, "lease", "leases"): "1 lease",
		size(1): "1 byte", size(999): "999 bytes", size(1500): "1.5 kB", size(12_000_000): "12 MB", size(1 << 63): "9223372 TB",
		span(time.Hour): "1 h", span(90 * time.Minute): "90 min", span(50 * time.Hour): "2 d", span(1500 * time.Millisecond): "1 s", span(20 * time.Millisecond): "20 ms",
		ago(noon, time.Time{}): "never", ago(noon, noon.Add(-3*time.Minute)): "3 min ago",
		clock(noon, noon.Add(-24*time.Hour)): "26 Nov 12:00:30", RangeOf("1h").duration(): "1h", RangeOf("30d").duration(): "720h",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
