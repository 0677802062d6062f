package daemon_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
)

func TestMetricsSayWhatStatusSays(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(3))
	h.Start("metrics=unix:" + h.Path("metrics.sock"))
	text := h.Metrics("metrics.sock")
	for _, want := range []string{
		`(?m)^vouchd_entries 3$`, `(?m)^vouchd_streams 0$`, `(?m)^vouchd_problems 0$`,
		`(?m)^vouchd_issuing_ca_expiry_seconds \d`, `(?m)^vouchd_log_anchored_records [1-9]`,
	} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	for _, unwanted := range []string{"vouchd_enrolment_expiry_seconds ", "spiffe://"} {
		if strings.Contains(text, "\n"+unwanted) || unwanted == "spiffe://" && strings.Contains(text, unwanted) {
			t.Errorf("%q is among the metrics of a host that is not enrolled:\n%s", unwanted, text)
		}
	}
}
