package daemon

import (
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

func TestAResumeIsACauseToAppraise(t *testing.T) {
	t.Parallel()
	a := newAppraiser(config.Node{}, nil, nil, nil, nil)
	if cause := a.cause(); cause != "" {
		t.Errorf("at once: %q", cause)
	}
	a.slept -= time.Minute // as if the machine had been suspended that long since
	if cause := a.cause(); !strings.Contains(cause, "suspend") {
		t.Errorf("after a minute of suspension: %q", cause)
	}
	if cause := a.cause(); cause != "" {
		t.Errorf("a second time: %q", cause)
	}
}

func TestMetricsAreNotServedToOtherMachines(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"0.0.0.0:0", ":9464", "192.0.2.1:9464", "localhost:9464", "nonsense"} {
		if l, err := listenMetrics(address); err == nil {
			l.Close()
			t.Errorf("listening on %q", address)
		}
	}
}

func TestAnEnrolmentIsComplainedOfLongBeforeItsEnd(t *testing.T) {
	t.Parallel()
	now := time.Now()
	e := &enrolment{config: &config.Config{Authority: config.Authority{Mode: config.ModeEnrolled}}}
	e.set(&view.Enrolment{NotBefore: now, NotAfter: now.Add(90 * 24 * time.Hour)}, nil)
	for _, tt := range []struct {
		name  string
		after time.Duration
		says  string
	}{
		{"at its beginning", 0, ""},
		{"with a third left and a day", 59 * 24 * time.Hour, ""},
		{"with less than a third left", 61 * 24 * time.Hour, "in 696h0m0s, and then nothing is issued; run vouch node request"},
		{"at its end", 90 * 24 * time.Hour, "ended on "},
	} {
		if p := e.problem(now.Add(tt.after)); tt.says == "" && p != "" || !strings.Contains(p, tt.says) {
			t.Errorf("%s: %q, want %q", tt.name, p, tt.says)
		}
	}
}
