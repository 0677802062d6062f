package drill

import (
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

func TestVerdictIsOfHowOftenAProcessTriesAndWhetherItComesBack(t *testing.T) {
	t.Parallel()
	began := time.Now()
	at := func(s int) time.Time { return began.Add(time.Duration(s) * time.Second) }
	for _, tt := range []struct {
		h       view.DrillHolder
		verdict string
		did     string
		back    string
		ok      bool
	}{
		{view.DrillHolder{Held: true, Exited: at(1)}, ended, "its process ended 1s after the pull", "has ended", true},
		{view.DrillHolder{Held: true}, silent, "asked for nothing", "has not asked again", false},
		{view.DrillHolder{Held: true, Exited: at(31)}, silent, "asked for nothing", "has ended", false},
		{view.DrillHolder{Held: true, Asks: 1, First: at(2), Last: at(2), Recovered: at(31)}, stopped, "was refused once", "again 1s after the end", true},
		{view.DrillHolder{Held: true, Calls: 4, First: at(1), Last: at(10), Recovered: at(32)}, pauses, "pauses between attempts: 4 calls with the handle that it has in 9s", "again 2s after", true},
		{view.DrillHolder{Asks: 100, First: at(0), Last: at(10), ShortestMS: 90, Recovered: at(31)}, loops, "tight loop: 100 asks in 10s, 90 ms apart", "again", false},
		{view.DrillHolder{Held: true, Asks: 50, First: at(0), Last: at(5), Exited: at(6)}, loops, "tight loop", "has ended", false},
		{view.DrillHolder{Held: true, Asks: 3, First: at(0), Last: at(20)}, pauses, "pauses between attempts: 3 asks in 20s", "has not been served again", false},
		{view.DrillHolder{Held: true, Asks: 2, Calls: 2, First: at(0), Last: at(20), Exited: at(40)}, pauses, "4 asks and calls", "has ended", true},
		{view.DrillHolder{Held: true, Value: true, Revocation: "hard", Exited: at(1)}, ended, "which confirmed its end", "has ended", true},
		{view.DrillHolder{Held: true, Value: true, Revocation: "expiry-only", Exited: at(1)}, ended, "works until it expires", "has ended", true},
		{view.DrillHolder{Held: true, Value: true, Revocation: "none", Exited: at(1)}, ended, "works until it is replaced", "has ended", true},
	} {
		v := judge(view.Drill{Began: began, Ended: at(30), Holders: []view.DrillHolder{tt.h}})[0]
		if v.Verdict != tt.verdict || !strings.Contains(v.Did, tt.did) || !strings.Contains(v.Back, tt.back) || v.OK != tt.ok {
			t.Errorf("of %+v: %s, %q, %q, %t, want %s, %q, %q, %t", tt.h, v.Verdict, v.Did, v.Back, v.OK, tt.verdict, tt.did, tt.back, tt.ok)
		}
	}
}

func TestVerdictNamesWhoCameAfterAProcessAndWhatTheVendorHasNotConfirmed(t *testing.T) {
	t.Parallel()
	began := time.Now()
	over := began.Add(30 * time.Second)
	all := judge(view.Drill{Began: began, Ended: over, Unconfirmed: "no answer", Holders: []view.DrillHolder{
		{SPIFFEID: "spiffe://example.org/a", Held: true, Value: true, Revocation: "hard", Exited: began.Add(time.Second)},
		{SPIFFEID: "spiffe://example.org/a", Recovered: over.Add(time.Second)},
	}})
	if len(all) != 1 {
		t.Fatalf("who came after the end is judged too: %+v", all)
	}
	if v := all[0]; !strings.Contains(v.Did, "is not confirmed") || !strings.Contains(v.Back, "another of its identity was served again") {
		t.Errorf("%q, %q", v.Did, v.Back)
	}
}
