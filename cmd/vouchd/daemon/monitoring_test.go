package daemon

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"
)

// described lists the metrics that the daemon has.
func described(t *testing.T) (names []string) {
	t.Helper()
	descs := make(chan *prometheus.Desc)
	go func() {
		statusCollector{}.Describe(descs)
		close(descs)
	}()
	for d := range descs {
		m := regexp.MustCompile(`fqName: "([^"]+)"`).FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("a metric without a name: %s", d)
		}
		names = append(names, m[1])
	}
	return names
}

func named(text string) []string {
	return regexp.MustCompile(`vouchd_[a-z0-9_]+`).FindAllString(text, -1)
}

func TestAlertsAndDashboardNameMetricsThatExist(t *testing.T) {
	t.Parallel()
	exist := described(t)
	alerts, err := os.ReadFile("../../../packaging/monitoring/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	dashboard, err := os.ReadFile("../../../packaging/monitoring/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	shown := named(string(dashboard))
	for _, name := range slices.Concat(named(string(alerts)), shown) {
		if !slices.Contains(exist, name) {
			t.Errorf("%s is no metric of the daemon", name)
		}
	}
	for _, name := range exist {
		if !slices.Contains(shown, name) {
			t.Errorf("%s is on no panel of the dashboard", name)
		}
	}

	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(alerts, &rules); err != nil {
		t.Fatal(err)
	}
	if len(rules.Groups) != 1 || len(rules.Groups[0].Rules) < 10 {
		t.Fatalf("rules: %+v", rules)
	}
	for _, r := range rules.Groups[0].Rules {
		if r.For == "" {
			r.For = "0s"
		}
		if r.For == "1d" {
			r.For = "24h"
		}
		_, err := time.ParseDuration(r.For)
		if r.Alert == "" || r.Expr == "" || err != nil || r.Annotations["summary"] == "" || !slices.Contains([]string{"critical", "warning"}, r.Labels["severity"]) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(dashboard, &board); err != nil {
		t.Fatal(err)
	}
	for _, p := range board.Panels {
		if p.Title == "" || len(p.Targets) == 0 {
			t.Errorf("panel %+v shows nothing", p)
		}
	}
}
