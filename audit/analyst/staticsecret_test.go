package analyst

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestStaticSecretsAreToldByAge(t *testing.T) {
	t.Parallel()
	days := func(n int) time.Time { return ten.AddDate(0, 0, -n) }
	u := new(Usage)
	u.AddInventory(ten, []StaticSecret{
		{Item: "alone, young", Path: "/a", Places: 1, Written: days(89)},
		{Item: "alone, old", Path: "/b", Line: 3, Places: 1, Written: days(91), Readers: []string{"user ann"}},
		{Item: "broad", Path: "/c", Places: 1, Written: days(31), Broad: "it reaches everything", What: "github-token"},
		{Item: "in places", Path: "/d", Places: 2, Written: days(32)},
		{Item: "for a group", Path: "/e", Places: 1, Written: days(40), Shared: true, Readers: []string{"user ann", "group dev (bob)"}},
		{Item: "for a group, young", Path: "/f", Places: 1, Written: days(30), Shared: true},
		{Item: "of no age", Path: "/g", Places: 5},
	})
	var got []string
	for _, s := range u.Static {
		got = append(got, s.Item)
	}
	if want := []string{"alone, old", "for a group", "in places", "broad"}; !slices.Equal(got, want) {
		t.Errorf("told are %q, want %q", got, want)
	}
	var b strings.Builder
	if err := u.WriteText(&b, time.UTC); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"static secrets outside of vouchd that are older than 90 days, or 30 if shared or broad: 4 (inventory of ",
		"  ! secret, alone, old in /b:3: 91 days old, and may be 90\n    user ann could read it\n",
		"  ! github-token, broad in /c: 31 days old, and may be 30 (it reaches everything)\n",
		"  ! secret, in places in /d: 32 days old, and may be 30 (it lies in 2 places)\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the report has not %q:\n%s", want, b.String())
		}
	}
}

func TestReportWithoutAnInventorySaysNothingOfOne(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	if err := new(Usage).WriteText(&b, time.UTC); err != nil || strings.Contains(b.String(), "static") {
		t.Errorf("%v, it says %q", err, b.String())
	}
}
