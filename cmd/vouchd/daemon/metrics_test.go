package daemon

import "testing"

func TestMetricsAreNotServedToOtherMachines(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"0.0.0.0:0", ":9464", "192.0.2.1:9464", "localhost:9464", "nonsense"} {
		if l, err := listenMetrics(address); err == nil {
			l.Close()
			t.Errorf("listening on %q", address)
		}
	}
}
