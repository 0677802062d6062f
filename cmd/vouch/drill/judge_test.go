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
		h    view.DrillHolder
		did  string
		back string
		ok   bool
	}{
		{view.DrillHolder{Held: true, Exited: at(1)}, "its process ended 1s after the pull", "has ended", true},
		{view.DrillHolder{Held: true}, "asked for nothing", "has not asked again", true},
		{view.DrillHolder{Held: true, Asks: 1, First: at(2), Last: at(2), Recovered: at(31)}, "was refused once", "again 1s after the end", true},
		{view.DrillHolder{Held: true, Calls: 4, First: at(1), Last: at(10), Recovered: at(32)}, "pauses between attempts: 4 calls with the handle that it has in 9s", "again 2s after", true},
		{view.DrillHolder{Asks: 100, First: at(0), Last: at(10), ShortestMS: 90, Recovered: at(31)}, "tight loop: 100 asks in 10s, 90 ms apart", "again", false},
		{view.DrillHolder{Held: true, Asks: 50, First: at(0), Last: at(5), Exited: at(6)}, "tight loop", "has ended", false},
		{view.DrillHolder{Held: true, Asks: 3, First: at(0), Last: at(20)}, "pauses between attempts: 3 asks in 20s", "has not been served again", false},
		{view.DrillHolder{Held: true, Asks: 2, Calls: 2, First: at(0), Last: at(20), Exited: at(40)}, "4 asks and calls", "has ended", true},
	} {
		v := judge(view.Drill{Began: began, Ended: at(30), Holders: []view.DrillHolder{tt.h}})[0]
		if !strings.Contains(v.Did, tt.did) || !strings.Contains(v.Back, tt.back) || v.OK != tt.ok {
			t.Errorf("of %+v: %q, %q, %t, want %q, %q, %t", tt.h, v.Did, v.Back, v.OK, tt.did, tt.back, tt.ok)
		}
	}
}
