package main

import (
	"encoding/json"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/inventory/inventorytest"
	"github.com/vouchd/vouchd/inventory/scan"
)

// TestFollowingTheInventoryLeavesNone runs what the inventory says to do about each secret of
// a host, as an administrator does who pastes it.
func TestFollowingTheInventoryLeavesNone(t *testing.T) {
	t.Parallel()
	g := inventorytest.Plant(t)
	h := newHost(t)
	h.Write("entries.d/a.yaml", "entries: []\n")
	h.Start()
	look := func() (r scan.Result) {
		t.Helper()
		must(t, json.Unmarshal([]byte(h.OK("inventory", "--key", h.Path("key"), "--output", "json", g.Root)), &r))
		return r
	}
	var commands []string
	before := 0
	for _, f := range look().Findings {
		if f.Leased {
			continue
		}
		before++
		if !slices.Contains(commands, f.Replace) {
			commands = append(commands, f.Replace)
		}
	}
	said, lines := make(map[string]string), 0 // what is left, with what to do about it, by file
	for _, c := range commands {
		words, err := exec.Command("sh", "-c", "printf '%s\\n' "+c).Output() // as a shell reads it
		must(t, err)
		args := strings.Split(strings.TrimSuffix(string(words), "\n"), "\n")
		if args[0] == "ssh-keygen" {
			if out, err := exec.Command(args[0], append(args[1:], "-N", "a passphrase")...).CombinedOutput(); err != nil {
				t.Errorf("%s: %v %s", c, err, out)
			}
			continue
		}
		stdout, stderr, code := h.Vouch(args[1:]...)
		g.HoldsNothing(stdout + stderr)
		if code == 1 && strings.Contains(stderr, "give --disclosable to hand") { // which is for a person to decide
			stdout, stderr, code = h.Vouch(append(args[1:], "--disclosable")...)
			g.HoldsNothing(stdout + stderr)
		}
		left := regexp.MustCompile(`(?m)^(.*?):(\d+): .*(LEFT: .*|remove it)$`).FindAllStringSubmatch(stdout, -1)
		for _, l := range left {
			said[l[1]] = l[3] // lines move
			lines++
		}
		if code != 0 && (code != 1 || len(left) == 0) {
			t.Errorf("%s exits %d: %s", c, code, stderr)
		}
	}
	left := 0
	for _, f := range look().Findings {
		if f.Leased {
			continue
		}
		if left++; said[f.Path] == "" {
			t.Errorf("%s:%d: %s %s is left of %d; it was to be replaced by %s", f.Path, f.Line, f.Kind, f.Item, before, f.Replace)
		}
	}
	if left > lines || lines > 6 {
		t.Errorf("of %d secrets %d are left, and %d were said to be taken away by hand: %v", before, left, lines, said)
	}
}
