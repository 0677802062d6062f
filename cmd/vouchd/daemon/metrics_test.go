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

func TestMetricsCountWhatIsRecorded(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesForVouch())
	h.Start("metrics=unix:" + h.Path("metrics.sock"))
	h.OK("fetch", "jwt", "--audience", "api")
	if _, _, code := h.Vouch("get", "made-up"); code == 0 {
		t.Fatal("got a credential that is not defined")
	}
	for _, want := range []string{
		`(?m)^vouchd_events_total{credential="",event="daemon.start",outcome="success"} 1$`,
		`(?m)^vouchd_events_total{credential="",event="jwt_svid.issue",outcome="success"} 1$`,
		`(?m)^vouchd_events_total{credential="",event="lease.grant_intent",outcome="denied"} 1$`,
	} {
		eventually(t, want, func() bool { return regexp.MustCompile(want).MatchString(h.Metrics("metrics.sock")) })
	}
	if text := h.Metrics("metrics.sock"); strings.Contains(text, "spiffe://") || strings.Contains(text, "made-up") {
		t.Errorf("an identity, or what a caller chose, is among the metrics:\n%s", text)
	}
}
