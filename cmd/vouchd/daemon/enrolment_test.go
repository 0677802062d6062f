package daemon

import (
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

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
