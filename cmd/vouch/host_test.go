package main

import (
	"regexp"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"
	"github.com/vouchd/vouchd/credential/postgres/pgtest"
)

// A host is a [leasetest.Host], with what these tests ask of one.
type host struct{ *leasetest.Host }

func newHost(t testing.TB) *host { return &host{leasetest.New(t)} }

func newLeasingHost(t testing.TB) (*host, *pgtest.Server) {
	h, pg := leasetest.NewLeasing(t)
	return &host{h}, pg
}

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
