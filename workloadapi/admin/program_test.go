package admin

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
	"github.com/vouchd/vouchd/workloadapi/gate/gatetest"
)

// recordAs has a start recorded by somebody who connected as that user.
func recordAs(t *testing.T, s *gatetest.Stack, uid uint32, body string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "/v1/programs/start", strings.NewReader(body))
	w := httptest.NewRecorder()
	r.RemoteAddr = Asker{PID: 1, UID: uid}.String()
	a := &Server{Gate: s.Gate, Attester: s.Attester, Recorder: s.Recorder}
	a.programStart(w, r)
	return w
}

func startOf(t *testing.T, change func(*view.ProgramStart)) string {
	t.Helper()
	p, err := process.Pin(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	began, err := p.StartTime()
	if err != nil {
		t.Fatal(err)
	}
	start := view.ProgramStart{
		PID: os.Getpid(), StartTime: began, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()),
		Program: "research", Unit: "vouch-run-research-x.service", Defined: "p.yaml:2",
	}
	if change != nil {
		change(&start)
	}
	b, err := json.Marshal(start)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestStartOfAProgramIsRecordedWithWhoAsked(t *testing.T) {
	t.Parallel()
	s := gatetest.Start(t, gatetest.Entry("/other", os.Getuid()+1))
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name         string
		change       func(*view.ProgramStart)
		outcome      audit.Outcome
		path, reason string
	}{
		{"process that lives", nil, audit.Success, exe, "program research as vouch-run-research-x.service"},
		{"process that had the PID before", func(p *view.ProgramStart) { p.StartTime-- }, audit.Success, "", "program research as vouch-run-research-x.service"},
		{"process of another user by now", func(p *view.ProgramStart) { p.UID++ }, audit.Success, "", "program research as vouch-run-research-x.service"},
		{"refusal", func(p *view.ProgramStart) { p.Refused = "it takes no arguments" }, audit.Denied, exe, "program research: it takes no arguments"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if w := recordAs(t, s, 0, startOf(t, tt.change)); w.Code != http.StatusOK {
				t.Fatalf("got %d: %s", w.Code, w.Body)
			}
			all := s.Records(audit.EventRun)
			got := all[len(all)-1]
			if got.Outcome != tt.outcome || got.Reason != tt.reason || got.Workload.PID != os.Getpid() || got.Workload.Path != tt.path || got.Workload.Entry != "p.yaml:2" {
				t.Errorf("recorded %s %q of %+v", got.Outcome, got.Reason, got.Workload)
			}
		})
	}
}

// TestOnlyRootRecordsStartsOfPrograms: not the daemon's own user either, which
// may connect to the socket.
func TestOnlyRootRecordsStartsOfPrograms(t *testing.T) {
	t.Parallel()
	s := gatetest.Start(t, gatetest.Entry("/other", os.Getuid()+1))
	for _, tt := range []struct {
		name string
		uid  uint32
		body string
		code int
	}{
		{"another user", 1000, startOf(t, nil), http.StatusForbidden},
		{"no JSON", 0, "x", http.StatusBadRequest},
		{"far too long", 0, `{"program":"` + strings.Repeat("x", maxProgramStart) + `"}`, http.StatusBadRequest},
		{"no process", 0, startOf(t, func(p *view.ProgramStart) { p.PID = 0 }), http.StatusServiceUnavailable},
		{"no unit", 0, startOf(t, func(p *view.ProgramStart) { p.Unit = "" }), http.StatusServiceUnavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if w := recordAs(t, s, tt.uid, tt.body); w.Code != tt.code {
				t.Errorf("got %d: %s, want %d", w.Code, w.Body, tt.code)
			}
		})
	}
	if n := len(s.Records(audit.EventRun)); n != 0 {
		t.Errorf("%d records", n)
	}
}

func TestRefusedStartsOfAFloodAreCountedAndNotRecorded(t *testing.T) {
	t.Parallel()
	s := gatetest.Start(t, gatetest.Entry("/other", os.Getuid()+1))
	refused := startOf(t, func(p *view.ProgramStart) { p.Refused, p.StartTime = "no", 0 })
	const asked = gatetest.Flood
	var suppressed int
	for range asked {
		var recorded view.ProgramRecorded
		if err := json.Unmarshal(recordAs(t, s, 0, refused).Body.Bytes(), &recorded); err != nil {
			t.Fatal(err)
		}
		if recorded.Suppressed {
			suppressed++
		}
	}
	if n := len(s.Records(audit.EventRun)); suppressed == 0 || n+suppressed != asked {
		t.Errorf("%d records and %d suppressed of %d", n, suppressed, asked)
	}
	if w := recordAs(t, s, 0, startOf(t, nil)); strings.Contains(w.Body.String(), "true") {
		t.Error("a start was not recorded for the refusals before it")
	}
}
