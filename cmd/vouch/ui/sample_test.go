package ui

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/cmd/vouch/ui/history"
	"github.com/vouchd/vouchd/cmd/vouch/ui/page"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// A sample is a host as there could be one, the same each time.
type sample struct {
	now     time.Time
	history *history.History
	long    string // text that is wherever there can be some; empty: nowhere
}

const domain = "spiffe://example.org/"

// sampleNow is when the sample is looked at.
var sampleNow = time.Date(2026, 11, 27, 16, 42, 7, 0, time.FixedZone("CET", 3600))

// busy is what an agent does, most of it by day.
type busy struct {
	id, credential, path, unit string
	pid                        int
	calls, leases              float64 // an hour
	paths                      []string
	bytes                      uint64
	night                      float64 // of what it does by day
}

var busiest = []busy{
	{"agent/research", "openai", "/usr/lib/agents/research/bin/agent", "research-agent.service", 4211, 46, 0, []string{"POST /v1/responses", "GET /v1/models/*"}, 48_000, .15},
	{"agent/coder", "anthropic", "/usr/local/bin/claude", "", 7730, 88, 0, []string{"POST /v1/messages"}, 96_000, .02},
	{"agent/coder", "github", "/usr/bin/git", "", 7744, 9, 0, []string{"GET /*/*/info/refs", "POST /*/*/git-upload-pack"}, 210_000, .02},
	{"agent/warehouse-report", "warehouse", "/opt/reports/bin/report", "report.service", 5120, 0, 3, nil, 0, 1},
	{"service/billing-sync", "billing-api", "/opt/billing/sync", "billing-sync.service", 1893, 20, .5, []string{"GET /v2/invoices/**"}, 12_000, .9},
	{"ci/deploy", "web-ssh", "/usr/bin/vouch", "", 0, 0, .6, nil, 0, .1},
}

func newSample() *sample {
	s := &sample{now: sampleNow}
	s.history = history.New(history.Options{From: s.now.Add(-keptFor), Alive: func(p history.Process) bool { return p.PID > 1000 && p.PID < 8000 && p.BootID == "now" }})
	w := &sampleLog{s: s, rand: rand.New(rand.NewPCG(7, 11)), at: s.now.Add(-9 * 24 * time.Hour)}
	w.node(412, "8f2a0c77d1e94b3ab6a0f5d2c9e81b4470d3a6e2")
	for ; w.at.Before(s.now.Add(-20 * time.Second)); w.at = w.at.Add(time.Minute) {
		w.minute()
	}
	w.end()
	s.history.End()
	return s
}

// A sampleLog writes the sample's records.
type sampleLog struct {
	s    *sample
	rand *rand.Rand
	at   time.Time
	n    uint64
}

func (w *sampleLog) take(after time.Duration, r audit.Record) {
	l := audit.Leaf{Version: 1, Index: w.n, Time: w.at.Add(after), BootID: "now", Record: r}
	if r.Event == audit.EventAnchor {
		l.Log = &audit.LogEvent{Size: w.n}
	}
	w.s.history.Take(&l)
	w.n++
}

func (w *sampleLog) node(resets uint32, pcrs string) {
	w.take(0, audit.Record{Event: audit.EventStart, Outcome: audit.Success, Node: &audit.Node{Resets: resets, PCRSHA256: pcrs, EKSHA256: "c41f"}, Config: &audit.Config{Version: "1.4.0"}})
}

// minute is what happens in one.
func (w *sampleLog) minute() {
	if w.at.Equal(w.s.now.Add(-4 * 24 * time.Hour)) {
		w.node(413, "1d90b5e6a27c43f08e5b9a64d7f3c2184b6e0f95")
	}
	day := w.at.Hour() >= 7 && w.at.Hour() < 19 && w.at.Weekday() != time.Saturday && w.at.Weekday() != time.Sunday
	for _, b := range busiest {
		rate := 1.0
		if !day {
			rate = b.night
		}
		p := &audit.Workload{PID: b.pid, StartTime: uint64(b.pid) * 100, UID: 990, Path: b.path, SHA256: fmt.Sprintf("%x", b.path), Unit: b.unit, Entry: "entries.d/agents.yaml:4"}
		for range w.often(b.calls * rate / 60) {
			w.call(&b, p)
		}
		for range w.often(b.leases * rate / 60) {
			c := &audit.Credential{Lease: fmt.Sprint("lease-", w.n), Name: b.credential, Handle: fmt.Sprint("h", w.n), TTL: 15 * time.Minute}
			w.take(10*time.Second, audit.Record{Event: audit.EventLeaseGrant, Outcome: audit.Success, SPIFFEID: domain + b.id, Workload: p, Credential: c})
			w.take(20*time.Second, audit.Record{Event: audit.EventUse, Outcome: audit.Success, SPIFFEID: domain + b.id, Credential: c,
				Use: &audit.Use{Source: "upstream", Count: 1 + w.rand.Uint64N(3), First: w.at, Last: w.at, WithinTTL: true}})
			w.take(30*time.Second, audit.Record{Event: audit.EventLeaseRevoke, Outcome: audit.Success, SPIFFEID: domain + b.id, Credential: c, Reason: "process ended"})
		}
		if w.at.Minute()%30 == b.pid%30 && b.pid > 0 {
			w.take(time.Second, audit.Record{Event: audit.EventX509SVID, Outcome: audit.Success, SPIFFEID: domain + b.id, Workload: p})
		}
	}
	if w.often(.4/60) > 0 {
		p := &audit.Workload{PID: 7744, StartTime: 774400, UID: 1000, Path: "/usr/bin/node"}
		w.take(40*time.Second, audit.Record{Event: audit.EventCall, Outcome: audit.Denied, Reason: "no rule of github allows it", SPIFFEID: domain + "agent/coder", Workload: p,
			Credential: &audit.Credential{Name: "github"}, Call: &audit.Call{Door: "sandbox", Method: "DELETE", Path: "/repos/example/site"}})
	}
	w.take(50*time.Second, audit.Record{Event: audit.EventAnchor, Outcome: audit.Success})
}

// often is how often something of a rate happens.
func (w *sampleLog) often(rate float64) (n int) {
	for w.rand.Float64() < rate/(1+rate) {
		n++
	}
	return n
}

func (w *sampleLog) call(b *busy, p *audit.Workload) {
	method, path, _ := strings.Cut(b.paths[w.rand.IntN(len(b.paths))], " ")
	status := uint64(200)
	if w.rand.IntN(60) == 0 {
		status = 429
	}
	w.take(time.Duration(w.rand.IntN(40))*time.Second, audit.Record{
		Event: audit.EventCallEnd, Outcome: audit.Success, SPIFFEID: domain + b.id, Workload: p, Duration: time.Duration(200+w.rand.IntN(2400)) * time.Millisecond,
		Credential: &audit.Credential{Name: b.credential}, Call: &audit.Call{
			Door: "loopback", Method: method, Path: path, Rule: "chat", Status: status, WithinTTL: true,
			Sent: b.bytes/8 + w.rand.Uint64N(b.bytes/8), Received: b.bytes/2 + w.rand.Uint64N(b.bytes),
		},
	})
}

// end is what is going on at the log's end.
func (w *sampleLog) end() {
	now := w.s.now
	at := func(ago time.Duration, r audit.Record) { w.at = now.Add(-ago); w.take(0, r) }
	coder := &audit.Workload{PID: 7730, StartTime: 773000, UID: 1000, Path: "/usr/local/bin/claude"}
	node := &audit.Workload{PID: 7761, StartTime: 776100, UID: 1000, Path: "/usr/bin/node"}
	research := &audit.Workload{PID: 4211, StartTime: 421100, UID: 990, Path: "/usr/lib/agents/research/bin/agent", Unit: "research-agent.service"}
	stranger := &audit.Workload{PID: 7802, StartTime: 780200, UID: 1000, Path: "/home/mara/.cache/\\u202egpj.tool\\x1b[31m"}
	for range 9 {
		at(26*time.Minute, audit.Record{Event: audit.EventCall, Outcome: audit.Denied, Reason: "nothing leads there from the sandbox", SPIFFEID: domain + "agent/coder", Workload: node,
			Call: &audit.Call{Door: "sandbox", Method: "tcp", Path: "203.0.113.50:443"}})
	}
	at(19*time.Minute, audit.Record{Event: audit.EventLeaseIntent, Outcome: audit.Denied, Reason: "the entry does not grant it", SPIFFEID: domain + "agent/research", Workload: research, Credential: &audit.Credential{Name: "billing-api"}})
	at(8*time.Minute, audit.Record{Event: audit.EventLeaseGrant, Outcome: audit.Failed, Reason: "the source answers 503; asked 3 times", SPIFFEID: domain + "service/billing-sync", Credential: &audit.Credential{Name: "billing-api"},
		Workload: &audit.Workload{PID: 1893, StartTime: 189300, UID: 991, Path: "/opt/billing/sync", Unit: "billing-sync.service"}})
	for range 3 {
		at(3*time.Minute, audit.Record{Event: audit.EventWorkload, Outcome: audit.Denied, Reason: "no entry matches", Workload: stranger})
	}
	at(95*time.Second, audit.Record{Event: audit.EventCall, Outcome: audit.Denied, Reason: "no rule of openai allows it", SPIFFEID: domain + "agent/research", Workload: research,
		Credential: &audit.Credential{Name: "openai"}, Call: &audit.Call{Door: "loopback", Method: "POST", Path: "/v1/files"}})
	at(41*time.Second, audit.Record{Event: audit.EventCall, Outcome: audit.Success, RequestID: "r1", SPIFFEID: domain + "agent/coder", Workload: coder, Credential: &audit.Credential{Name: "anthropic"},
		Call: &audit.Call{Door: "sandbox", Method: "POST", Path: "/v1/messages", Rule: "messages"}})
	at(3*time.Second, audit.Record{Event: audit.EventCall, Outcome: audit.Success, RequestID: "r2", SPIFFEID: domain + "agent/research", Workload: research, Credential: &audit.Credential{Name: "openai"},
		Call: &audit.Call{Door: "loopback", Method: "POST", Path: "/v1/responses", Rule: "chat"}})
	at(2*time.Second, audit.Record{Event: audit.EventX509SVID, Outcome: audit.Success, SPIFFEID: domain + "agent/warehouse-report",
		Workload: &audit.Workload{PID: 5120, StartTime: 512000, UID: 992, Path: "/opt/reports/bin/report", Unit: "report.service"}})
}

// gather implements [gatherer].
func (s *sample) gather(_ context.Context, q question) *page.Facts {
	entry := func(id string, credentials []string, selectors ...string) view.Entry {
		return view.Entry{SPIFFEID: domain + id, Credentials: credentials, Selectors: selectors, Position: "/etc/vouchd/entries.d/agents.yaml:4"}
	}
	lease := func(credential, id, handle, upstream, unit string, pid int, left time.Duration, bind, revocation string) view.Lease {
		return view.Lease{
			Lease: "l-" + handle, Credential: credential, SPIFFEID: domain + id, State: "active", Bind: bind, PID: pid, Unit: unit, Upstream: upstream, Handle: handle,
			Revocation: revocation, Granted: s.now.Add(left - time.Hour), Expires: s.now.Add(left),
		}
	}
	mail := entry("agent/mail-triage", []string{"mail"}, "systemd:id:mail-agent.service")
	mail.Disabled = &view.Disabled{SPIFFEID: mail.SPIFFEID, Since: s.now.Add(-50 * time.Hour), Reason: "incident 4211"}
	stuck := lease("billing-api", "service/billing-sync", "acc-5512", "vault.example.org", "billing-sync.service", 1893, -2*time.Minute, "unit", "hard")
	stuck.State, stuck.Reason, stuck.Attempts, stuck.Failure = "stuck", "expired", 6, "the source answers 503"
	f := &page.Facts{
		Now: s.now, Host: "build-7", Range: q.of, Refresh: q.refresh, Log: "/var/lib/vouchd/log",
		Daemon: &view.Status{
			Version: "1.4.0", TrustDomain: "example.org", Started: s.now.Add(-4 * 24 * time.Hour), TPM: view.TPMStatus{EKSHA256: "c41f90b27d6e5a8834f1", EKCertificate: true},
			Node:      view.NodeStatus{State: view.NodePassed, Policy: "/etc/vouchd/node-policy.yaml", Checked: s.now.Add(-12 * time.Minute), Bound: true},
			Authority: view.AuthorityStatus{IssuingCAKeyID: "77ab0e51c2d94f6a", IssuingCANotAfter: s.now.Add(5 * time.Hour)},
			Log:       view.LogStatus{Records: s.history.State().Next, RootSHA256: "9be1d0a4c377f52be81a", DiskBytes: 61 << 20, MaxBytes: 1 << 30},
			Reminders: []string{"secret openai-key is due to be rotated by 2 December; rotate it with: vouch secret rotate openai-key"},
			Problems:  []string{"1 lease could not be ended; retrying, and vouch lease list says why"},
		},
		Entries: []view.Entry{
			entry("agent/research", []string{"openai", "anthropic"}, "systemd:id:research-agent.service", "systemd:main_process:true"),
			entry("agent/coder", []string{"anthropic", "github", "npm", "pypi", "sentry"}, "unix:user:mara", "script:path:/usr/local/bin/claude"),
			entry("agent/warehouse-report", []string{"warehouse"}, "systemd:id:report.service"),
			entry("service/billing-sync", []string{"billing-api"}, "systemd:id:billing-sync.service"), entry("ci/deploy", []string{"web-ssh"}, "unix:user:ci"), mail,
		},
		Leases: []view.Lease{
			stuck,
			lease("openai", "agent/research", "openai@3", "api.openai.com", "research-agent.service", 4211, 41*time.Minute, "process", "none"),
			lease("anthropic", "agent/coder", "anthropic@1", "api.anthropic.com", "", 7730, 22*time.Minute, "process", "none"),
			lease("github", "agent/coder", "4f81c0d2aa", "github.com", "", 7730, 52*time.Minute, "process", "hard"),
			lease("warehouse", "agent/warehouse-report", "v_report_8c1e44", "db.example.org:5432", "report.service", 5120, 9*time.Minute, "unit", "hard"),
		},
		Defined: []page.Credential{
			{Name: "openai", Kind: "static", Upstream: "https://api.openai.com", Description: "Models for research, without files or fine-tuning.", Gives: "a handle, by which vouchd makes the calls,", Lifetime: time.Hour, Enforced: true,
				Rules: []page.Rule{{Name: "no-files", What: "POST /v1/files/**"}, {Name: "chat", Allows: true, What: "POST /v1/responses", Further: "content /model gpt-5-mini; content /max_output_tokens at most 4096"}, {Name: "models", Allows: true, What: "GET /v1/models/**"}}},
			{Name: "billing-api", Kind: "vault", Upstream: "https://vault.example.org", Gives: "its value", Lifetime: 30 * time.Minute, Enforced: true},
			{Name: "github", Kind: "github", Upstream: "https://github.com", Gives: "a handle, by which vouchd makes the calls,", Lifetime: time.Hour, Enforced: true, Rules: []page.Rule{{Name: "fetch", Allows: true, What: "GET, POST /example/**"}}},
			{Name: "npm", Kind: "none", Upstream: "https://registry.npmjs.org", Gives: "a handle, by which vouchd makes the calls,", Lifetime: time.Hour, Enforced: true, Rules: []page.Rule{{Name: "install", Allows: true, What: "GET, HEAD /**"}}},
			{Name: "pypi", Kind: "none", Upstream: "https://pypi.org", Gives: "a handle, by which vouchd makes the calls,", Lifetime: time.Hour, Enforced: true, Rules: []page.Rule{{Name: "install", Allows: true, What: "GET, HEAD /**"}}},
			{Name: "anthropic", Kind: "static", Upstream: "https://api.anthropic.com", Gives: "a handle, by which vouchd makes the calls,", Lifetime: time.Hour, Rules: []page.Rule{{Name: "messages", Allows: true, What: "POST /v1/messages"}}},
		},
		Verified: page.Verification{Done: s.now.Add(-6 * time.Minute), Report: &reader.Report{OK: true, Verdict: fmt.Sprintf("the log holds: %d records, the first %d anchored in the TPM", s.history.State().Next-40, s.history.State().Next-60)}},
	}
	if l := s.long; l != "" {
		f.Daemon.Problems = append(f.Daemon.Problems, l)
		f.Entries = append(f.Entries, entry("agent/"+l, []string{l, "x" + l}, l))
		stuck := lease(l, "agent/"+l, l, l, l, 4, time.Hour, "unit", "hard")
		stuck.State, stuck.Reason, stuck.Failure = "stuck", l, l
		f.Leases = append(f.Leases, stuck)
		f.Defined = append(f.Defined, page.Credential{Name: l, Kind: l, Upstream: l, Description: l, Rules: []page.Rule{{Name: l, What: l, Further: l}}})
	}
	f.Seen = s.history.View(q.of.Window(s.now), q.agent)
	if l := s.long; l != "" {
		p := history.Process{PID: 4, Path: "/" + l, Unit: l}
		f.Seen.Refusals = append(f.Seen.Refusals, history.Refusal{SPIFFEID: domain + "agent/" + l, Credential: l, Call: l, Reason: l, Process: p, Time: s.now})
		f.Seen.Under = append(f.Seen.Under, history.Call{SPIFFEID: domain + "agent/" + l, Credential: l, What: l, Process: p, Time: s.now})
		f.Seen.Running[domain+"agent/"+l] = []history.Process{p}
	}
	return f
}
