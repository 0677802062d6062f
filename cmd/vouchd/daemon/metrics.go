package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/vouchd/vouchd/credential/sealed"
	"github.com/vouchd/vouchd/workloadapi/admin"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// serveMetrics serves what status says, and how often what was recorded, as
// Prometheus metrics, where the configuration asks for it: on a Unix socket or a
// loopback address. There are no SPIFFE IDs among the labels: they are many, and
// nobody's business.
func (d *daemon) serveMetrics(ctx context.Context) error {
	if d.config.Metrics == "none" {
		return nil
	}
	l, err := listenMetrics(d.config.Metrics)
	if err != nil {
		return fmt.Errorf("serving metrics: %w", err)
	}
	events := newEventCounts(func(name string) bool {
		_, ok := d.leases.engine.Definitions().Get(name)
		return ok
	})
	ctx, cancel := context.WithCancel(ctx)
	var counting sync.WaitGroup
	counting.Go(func() { events.run(ctx, d.log, d.log.began) })
	defer counting.Wait()
	defer cancel()
	registry := prometheus.NewRegistry()
	registry.MustRegister(statusCollector{events: events, secrets: d.leases.secrets.List, status: func() view.Status {
		st := d.status()
		admin.FillStatus(&st, d.identities.gate, d.identities.attester)
		return st
	}})
	h := &http.Server{
		Handler:           promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(d.slog.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { h.Close() })
	defer stop()
	if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving metrics: %w", err)
	}
	return nil
}

// listenMetrics refuses any address that another machine could reach.
func listenMetrics(address string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		if info, err := os.Lstat(path); err == nil && info.Mode().Type() == os.ModeSocket {
			if err := os.Remove(path); err != nil { // a crash left it: the state directory is ours alone
				return nil, err
			}
		}
		return net.Listen("unix", path)
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil || !at.Addr().IsLoopback() {
		return nil, fmt.Errorf("%q is neither unix: and a path nor a loopback address and a port, such as 127.0.0.1:9464", address)
	}
	return net.Listen("tcp", address)
}

// A statusCollector makes metrics of the daemon's status, as it is asked for.
type statusCollector struct {
	events  *eventCounts
	status  func() view.Status
	secrets func() []sealed.Secret
}

// The metrics. Times are Unix times in seconds, which an alert compares with
// time().
var metrics = []struct {
	desc  *prometheus.Desc
	value func(st *view.Status) (v float64, ok bool)
}{
	{metric("root_expiry_seconds", "When the root certificate ends, as Unix time."), func(st *view.Status) (float64, bool) { return unixTime(st.Authority.RootNotAfter) }},
	{metric("issuing_ca_expiry_seconds", "When the issuing CA ends, as Unix time."), func(st *view.Status) (float64, bool) { return unixTime(st.Authority.IssuingCANotAfter) }},
	{metric("enrolment_expiry_seconds", "When the enrolment of this host ends, as Unix time; missing where it is not enrolled."), func(st *view.Status) (float64, bool) {
		if st.Node.Enrolment == nil {
			return 0, false
		}
		return unixTime(st.Node.Enrolment.NotAfter)
	}},
	{metric("spire_online", "1 where the SPIRE server answers, 0 where it is away; missing where this host is no agent of one."), func(st *view.Status) (float64, bool) {
		if st.Authority.SPIRE == nil {
			return 0, false
		}
		if st.Authority.SPIRE.Online {
			return 1, true
		}
		return 0, true
	}},
	{metric("spire_last_sync_seconds", "When the SPIRE server last said which entries there are, as Unix time."), func(st *view.Status) (float64, bool) {
		if st.Authority.SPIRE == nil {
			return 0, false
		}
		return unixTime(st.Authority.SPIRE.LastSync)
	}},
	{metric("node_appraisal_passed", "1 where this machine satisfies its policy, 0 where it does not or nobody could tell; missing where it has none."), func(st *view.Status) (float64, bool) {
		if st.Node.State == view.NodePassed {
			return 1, true
		}
		return 0, st.Node.State != view.NodeNotAppraised
	}},
	{metric("entries", "Registration entries in force."), func(st *view.Status) (float64, bool) { return float64(st.Entries.Count), true }},
	{metric("streams", "Streams open on the agent socket."), func(st *view.Status) (float64, bool) { return float64(st.Streams), true }},
	{metric("log_records", "Records in the attestation log."), func(st *view.Status) (float64, bool) { return float64(st.Log.Records), true }},
	{metric("log_anchored_records", "Records that the last anchor in the TPM covers."), func(st *view.Status) (float64, bool) { return float64(st.Log.Anchored), true }},
	{metric("log_last_anchor_seconds", "When the log was last anchored in the TPM, as Unix time."), func(st *view.Status) (float64, bool) { return unixTime(st.Log.LastAnchor) }},
	{metric("log_disk_bytes", "What the attestation log takes on the disk."), func(st *view.Status) (float64, bool) { return float64(st.Log.DiskBytes), true }},
	{metric("log_max_bytes", "What it may take; nothing is issued past that."), func(st *view.Status) (float64, bool) { return float64(st.Log.MaxBytes), true }},
	{metric("log_writable", "1 where the attestation log can be written, 0 where nothing is issued because it can't."), func(st *view.Status) (float64, bool) {
		if st.Log.Error != "" {
			return 0, true
		}
		return 1, true
	}},
	{metric("secrets", "Secrets sealed to this machine."), func(st *view.Status) (float64, bool) { return float64(st.Secrets.Count), st.Secrets.Error == "" }},
	{metric("secrets_due", "Secrets that should have been rotated by now."), func(st *view.Status) (float64, bool) { return float64(st.Secrets.Due), st.Secrets.Error == "" }},
	{metric("hashers_lost", "Workers that wait for a file system that does not answer."), func(st *view.Status) (float64, bool) { return float64(st.Limited.HashersLost), true }},
	{metric("problems", "Problems that vouch status reports."), func(st *view.Status) (float64, bool) { return float64(len(st.Problems)), true }},
}

// limited counts what the limits have held back, by the limit.
var limited = metric("limited_total", "What the limits have held back since the start, by the limit.", "limit")

func limits(l view.LimitedStatus) map[string]uint64 {
	return map[string]uint64{
		"connections": l.Connections, "strangers": l.Strangers, "refusals": l.Refusals, "too_often": l.TooOften,
		"log_share": l.LogShare, "busy": l.Busy, "repeats": l.Repeats, "hashes": l.Hashes,
	}
}

// What is reported about each witness, by its name.
var (
	witnessUp      = metric("log_witness_up", "1 where the witness signed when it was last asked.", "witness")
	witnessRecords = metric("log_witness_records", "Records that the witness signed last.", "witness")
	witnessTime    = metric("log_witness_last_seconds", "When the witness last signed, as Unix time.", "witness")
)

// secretMetrics are one for each sealed secret, of which there are
// [sealed.MaxCount] at most.
var secretMetrics = []struct {
	desc  *prometheus.Desc
	value func(s sealed.Secret) time.Time
}{
	{metric("secret_sealed_seconds", "When the secret's value was sealed, as Unix time.", "secret"), func(s sealed.Secret) time.Time { return s.Sealed }},
	{metric("secret_rotate_by_seconds", "When the secret is due to be rotated, as Unix time.", "secret"), sealed.Secret.RotateBy},
	{metric("secret_last_use_seconds", "When the secret was last used, as Unix time; missing where it was not.", "secret"), func(s sealed.Secret) time.Time { return s.LastUse }},
}

func metric(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("vouchd_"+name, help, labels, nil)
}

func unixTime(t time.Time) (float64, bool) { return float64(t.Unix()), !t.IsZero() }

// Describe implements [prometheus.Collector].
func (c statusCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, m := range metrics {
		descs <- m.desc
	}
	descs <- limited
	descs <- eventsTotal
	descs <- witnessUp
	descs <- witnessRecords
	descs <- witnessTime
	for _, m := range secretMetrics {
		descs <- m.desc
	}
}

// Collect implements [prometheus.Collector].
func (c statusCollector) Collect(out chan<- prometheus.Metric) {
	st := c.status()
	for _, m := range metrics {
		if v, ok := m.value(&st); ok {
			out <- prometheus.MustNewConstMetric(m.desc, prometheus.GaugeValue, v)
		}
	}
	for by, n := range limits(st.Limited) {
		out <- prometheus.MustNewConstMetric(limited, prometheus.CounterValue, float64(n), by)
	}
	c.events.collect(out)
	for _, w := range st.Log.Witnesses {
		up := 1.0
		if w.Error != "" {
			up = 0
		}
		out <- prometheus.MustNewConstMetric(witnessUp, prometheus.GaugeValue, up, w.Name)
		out <- prometheus.MustNewConstMetric(witnessRecords, prometheus.GaugeValue, float64(w.Records), w.Name)
		if t, ok := unixTime(w.Time); ok {
			out <- prometheus.MustNewConstMetric(witnessTime, prometheus.GaugeValue, t, w.Name)
		}
	}
	secrets := c.secrets()
	for _, m := range secretMetrics {
		for _, s := range secrets {
			if v, ok := unixTime(m.value(s)); ok {
				out <- prometheus.MustNewConstMetric(m.desc, prometheus.GaugeValue, v, s.Name)
			}
		}
	}
}
