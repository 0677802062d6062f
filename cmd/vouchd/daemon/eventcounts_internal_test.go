package daemon

import (
	"fmt"
	"testing"

	"github.com/vouchd/vouchd/audit"
)

func TestEventsOfUndefinedCredentialsAreCountedWithoutTheName(t *testing.T) {
	t.Parallel()
	c := newEventCounts(func(name string) bool { return name == "tides" })
	denied := func(name string) *audit.Record {
		return &audit.Record{Event: audit.EventLeaseIntent, Outcome: audit.Denied, SPIFFEID: "spiffe://example.org/" + name, Credential: &audit.Credential{Name: name}}
	}
	for i := range 1000 {
		c.count(denied(fmt.Sprintf("made-up-%d", i)))
	}
	c.count(denied("tides"))
	if c.n[eventKind{audit.EventLeaseIntent, audit.Denied, ""}] != 1000 || c.n[eventKind{audit.EventLeaseIntent, audit.Denied, "tides"}] != 1 || len(c.n) != 2 {
		t.Errorf("counters: %v", c.n)
	}
}

func TestCountersOfEventsAreBounded(t *testing.T) {
	t.Parallel()
	c := newEventCounts(func(string) bool { return true })
	for i := range 2 * maxEventKinds {
		c.count(&audit.Record{Event: audit.EventLeaseGrant, Outcome: audit.Success, Credential: &audit.Credential{Name: fmt.Sprint(i)}})
	}
	if len(c.n) != maxEventKinds+1 || c.n[eventKind{audit.EventLeaseGrant, audit.Success, ""}] != maxEventKinds {
		t.Errorf("%d counters", len(c.n))
	}
}
