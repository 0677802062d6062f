package export

import (
	"context"
	"fmt"
	"strconv"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	"go.opentelemetry.io/otel/log"
	sdk "go.opentelemetry.io/otel/sdk/log"
	"go.opentelemetry.io/otel/sdk/resource"

	"github.com/vouchd/vouchd/audit"
)

// An OTLP sink sends OpenTelemetry log records over OTLP/HTTP. It is configured
// by the standard environment variables (OTEL_EXPORTER_OTLP_ENDPOINT, _HEADERS,
// _CERTIFICATE and so on, and OTEL_RESOURCE_ATTRIBUTES).
type OTLP struct {
	exporter *otlploghttp.Exporter
	provider *sdk.LoggerProvider
	logger   log.Logger
	gathered gatherer
}

// NewOTLP makes the sink. It does not connect yet.
func NewOTLP(ctx context.Context) (*OTLP, error) {
	// The exporter's own retries would hide from Send that nothing arrives.
	exporter, err := otlploghttp.New(ctx, otlploghttp.WithRetry(otlploghttp.RetryConfig{Enabled: false}))
	if err != nil {
		return nil, fmt.Errorf("configuring OTLP: %w", err)
	}
	res, err := resource.New(ctx, resource.WithFromEnv(), resource.WithTelemetrySDK(), resource.WithHost())
	if err != nil {
		return nil, fmt.Errorf("configuring OTLP: %w", err)
	}
	s := &OTLP{exporter: exporter}
	s.provider = sdk.NewLoggerProvider(sdk.WithResource(res), sdk.WithProcessor(&s.gathered))
	s.logger = s.provider.Logger("github.com/vouchd/vouchd/audit")
	return s, nil
}

// Close ends the sink.
func (s *OTLP) Close(ctx context.Context) error { return s.exporter.Shutdown(ctx) }

// Send implements [Sink].
func (s *OTLP) Send(ctx context.Context, events []Event) error {
	s.gathered.records = s.gathered.records[:0]
	for i := range events {
		s.logger.Emit(ctx, otlpRecord(&events[i]))
	}
	return s.exporter.Export(ctx, s.gathered.records)
}

// A gatherer is a processor that keeps records for one Export, whose error then
// is Send's. The processors of the SDK tell nobody.
type gatherer struct{ records []sdk.Record }

func (g *gatherer) OnEmit(_ context.Context, r *sdk.Record) error {
	g.records = append(g.records, r.Clone())
	return nil
}

func (g *gatherer) Enabled(context.Context, sdk.EnabledParameters) bool { return true }
func (g *gatherer) Shutdown(context.Context) error                      { return nil }
func (g *gatherer) ForceFlush(context.Context) error                    { return nil }

func otlpRecord(e *Event) log.Record {
	l := &e.Leaf
	var r log.Record
	r.SetTimestamp(l.Time)
	r.SetEventName("vouchd." + string(l.Event))
	r.SetSeverity(otlpSeverity(l))
	r.SetBody(attribute.StringValue(message(l)))
	r.AddAttributes(
		attribute.String("vouchd.event", string(l.Event)), attribute.String("vouchd.outcome", string(l.Outcome)),
		attribute.String("vouchd.log.id", e.LogID), attribute.String("vouchd.log.record", strconv.FormatUint(e.Index, 10)),
		attribute.String("vouchd.log.leaf_hash", leafHash(e)), attribute.String("vouchd.record", string(e.Raw)),
	)
	if l.SPIFFEID != "" {
		r.AddAttributes(attribute.String("vouchd.spiffe_id", l.SPIFFEID))
	}
	if l.RequestID != "" {
		r.AddAttributes(attribute.String("vouchd.request_id", l.RequestID))
	}
	if w := l.Workload; w != nil {
		r.AddAttributes(attribute.Int("process.pid", w.PID), attribute.String("process.executable.path", w.Path), attribute.Int64("process.real_user.id", int64(w.UID)))
	}
	return r
}

func otlpSeverity(l *audit.Leaf) log.Severity {
	switch l.Outcome {
	case audit.Denied:
		return log.SeverityWarn
	case audit.Failed:
		return log.SeverityError
	}
	return log.SeverityInfo
}
