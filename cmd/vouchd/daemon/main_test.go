package daemon_test

import (
	"os"
	"regexp"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"
)

func TestMain(m *testing.M) {
	if kind := os.Getenv(drillAgent); kind != "" {
		beAgent(kind)
	}
	code := m.Run()
	daemontest.RemovePrograms()
	leasetest.StopDatabase()
	os.Exit(code)
}

// A host is a [daemontest.Host], with what these tests ask of one.
type host struct{ *daemontest.Host }

func newHost(t testing.TB) *host { return &host{daemontest.New(t)} }

func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	daemontest.Eventually(t, what, holds)
}

func matches(pattern, text string) bool { return regexp.MustCompile(pattern).MatchString(text) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
