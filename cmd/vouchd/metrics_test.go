package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

func TestMetricsSayWhatStatusSays(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.write("entries.d/a.yaml", entriesFor(3))
	h.start("--set", "metrics=unix:"+h.path("metrics.sock"))
	text := h.metrics("metrics.sock")
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

// metrics asks for the metrics on a socket of the host.
func (h *host) metrics(socket string) (text string) {
	h.t.Helper()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", h.path(socket))
	}}}
	defer client.CloseIdleConnections()
	eventually(h.t, "the metrics are served", func() bool {
		resp, err := client.Get("http://vouchd/metrics")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		text = string(b)
		return err == nil && resp.StatusCode == http.StatusOK
	})
	return text
}
