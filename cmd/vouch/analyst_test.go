package main

import (
	"encoding/binary"
	"encoding/csv"
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"
	"github.com/vouchd/vouchd/workloadapi/credentialapi/client"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
)

// documented returns the commands in a block of a page that begins with a line,
// split as a shell would.
func documented(t *testing.T, page, first string) (commands [][]string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/" + page)
	must(t, err)
	_, rest, found := strings.Cut(string(text), "\n    "+first+"\n")
	if !found {
		t.Fatalf("%s does not show %q", page, first)
	}
	for line := range strings.Lines("    " + first + "\n" + rest) {
		command, ok := strings.CutPrefix(line, "    ")
		if !ok {
			break
		}
		var words []string
		for _, m := range regexp.MustCompile(`"([^"]*)"|(\S+)`).FindAllStringSubmatch(command, -1) {
			words = append(words, m[1]+m[2])
		}
		commands = append(commands, words)
	}
	return commands
}

// TestAnalystWithATarballAnswersInFourCommands runs what docs/log.md shows, of a log
// that was archived as docs/operate.md says, while the daemon ran.
func TestAnalystWithATarballAnswersInFourCommands(t *testing.T) {
	t.Parallel()
	h, pg := newLeasingHost(t)
	h.Start()
	before := time.Now()
	a := leasetest.StartAgent(t, h.Host)
	a.Thief(t, pg) // a session that is open at the end shows that the login was used
	a.Exit(t)
	if _, _, code := h.Vouch("get", "ungranted"); code == 0 {
		t.Fatal("got what is not granted")
	}
	eventually(t, "the end is recorded", func() bool {
		out, _, _ := h.Vouch("log", "show", "--event", "lease.revoke")
		return strings.Contains(out, "lease.revoke")
	})
	dir := t.TempDir()
	archive := exec.Command("tar", "-C", h.Path("state"), "-cf", dir+"/log.tar", "log")
	if out, err := archive.CombinedOutput(); err != nil && archive.ProcessState.ExitCode() != 1 { // 1: a file changed meanwhile
		t.Fatalf("%v: %s", err, out)
	}

	instead := strings.NewReplacer(
		"2026-11-26 10:00", before.Add(-time.Minute).Format("2006-01-02 15:04"),
		"2026-11-26 11:00", before.Add(time.Hour).Format("2006-01-02 15:04"),
		"warehouse", "tides", "log.tar", dir+"/log.tar",
	)
	commands := documented(t, "log.md", "vouch log verify --live log.tar")
	if len(commands) != 4 {
		t.Fatalf("%d commands: %q", len(commands), commands)
	}
	zone := regexp.QuoteMeta(before.Format("Z07:00"))
	for i, want := range [][]string{
		{`^The log holds`},
		{
			`From .*` + zone + ` until .*` + zone,
			`boot state: PCRs [0-9a-f]{64}, reset count \d+, since .*\n  unchanged`,
			`(?s)spiffe://example\.org/agent\n.*credential tides: granted once; used (once|\d+ times), .* to .*; cost not recorded`,
			`of the grants: 1 revoked`,
			`credential ungranted: not granted, 1 denied`,
		},
		{
			`lease\.grant  spiffe://example\.org/agent  tides  as ` + a.Username,
			`credential\.use .* used (once|\d+ times), as seen by upstream`,
			`revoked  lease\.revoke .*\(process ended\)`,
			`(?m)^\d+  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}` + zone,
		},
		{`machine .* EK`, `boot .*PCR state`, `process .* ran .* it matched .*a\.yaml`, `decision .*lease\.grant: success`, `after .*used (once|\d+ times) between`, `anchor|No anchor covers`},
	} {
		args := commands[i][1:]
		for j := range args {
			args[j] = instead.Replace(args[j])
		}
		out, stderr, code := h.Vouch(args...)
		if code != 0 || stderr != "" {
			t.Errorf("vouch %q exits %d: %s%s", args, code, out, stderr)
		}
		for _, w := range want {
			if !matches(w, out) {
				t.Errorf("vouch %q does not say %s:\n%s", args, w, out)
			}
		}
		if strings.Contains(out, "0001-01-01") || matches(`warning:`, out) {
			t.Errorf("vouch %q says\n%s", args, out)
		}
	}
}

func TestLogQuestionsThatMakeNoSenseAreRefused(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for _, tt := range []struct {
		args []string
		says string
	}{
		{[]string{"show", "--from", "yesterday"}, `--from "yesterday" is not a time`},
		{[]string{"report", "--until", "10:00"}, `--until "10:00" is not a time`},
		{[]string{"show", "--since", "-1h"}, `want a duration such as 1h`},
		{[]string{"show", "--since", "1h", "--from", "2026-11-26"}, `both say where to begin`},
		{[]string{"report", "--from", "2026-11-26 11:00", "--until", "2026-11-26 10:00"}, `is not after`},
		{[]string{"report", "--outcome", "good"}, `want one of success, denied, error, expired, revoked, released, unconfirmed`},
		{[]string{"explain"}, `name a record, or say which`},
		{[]string{"explain", "7", "--credential", "tides"}, `not both`},
		{[]string{"verify", "--output", "csv"}, `want text or json`},
	} {
		if _, stderr, code := h.Vouch(append([]string{"log"}, tt.args...)...); code != 2 || !strings.Contains(stderr, tt.says) {
			t.Errorf("vouch log %q exits %d: %s", tt.args, code, stderr)
		}
	}
}

func TestLogTimesAreInOneZoneThatIsNamed(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Start()
	h.Stop()
	now := time.Now()
	must(t, os.WriteFile(h.Path("zone"), zoneFile("EAST", 5*time.Hour), 0o644))
	in := func(zone string, args ...string) string {
		t.Helper()
		cmd := exec.Command("env", append([]string{"TZ=" + zone, daemontest.Program(t, "vouch")}, args...)...)
		cmd.Env = append(os.Environ(), "VOUCHD_CONFIG="+h.Path("vouchd.yaml"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("vouch %q: %v: %s", args, err, out)
		}
		return string(out)
	}
	for _, tt := range []struct{ zone, flag, offset string }{{":" + h.Path("zone"), "--utc=false", `\+05:00`}, {":" + h.Path("zone"), "--utc", "Z"}} {
		out := in(tt.zone, "log", "show", tt.flag)
		for line := range strings.Lines(out) {
			if !matches(`^\d+  \S+ \d\d:\d\d:\d\d\.\d{3}`+tt.offset+" ", line) {
				t.Errorf("a time without its zone: %s", line)
			}
		}
	}
	// A time without a zone is in the one that is printed.
	there := now.UTC().Add(5 * time.Hour)
	if out := in(":"+h.Path("zone"), "log", "show", "--from", there.Add(-time.Hour).Format("2006-01-02 15:04"), "--until", there.Add(time.Hour).Format("2006-01-02 15:04")); !strings.Contains(out, "daemon.start") {
		t.Errorf("the hour in the local zone has\n%s", out)
	}
	if out := in(":"+h.Path("zone"), "log", "show", "--until", now.Add(-time.Hour).Format(time.RFC3339)); out != "" {
		t.Errorf("before the start there was\n%s", out)
	}
}

// zoneFile is a time zone with an offset and no changes (RFC 8536), since a test's
// machine may have none.
func zoneFile(name string, offset time.Duration) []byte {
	b := append([]byte("TZif"), make([]byte, 16)...)
	for _, n := range []uint32{0, 0, 0, 0, 1, uint32(len(name) + 1)} { // one type, and its name
		b = binary.BigEndian.AppendUint32(b, n)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(offset/time.Second))
	return append(append(b, 0, 0), name+"\x00"...)
}

func TestLogAnswersForPrograms(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", "entries: []\n")
	h.Start()
	h.Stop()
	for _, args := range [][]string{{"log", "show", "--output", "csv"}, {"log", "report", "--output", "csv"}} {
		rows, err := csv.NewReader(strings.NewReader(h.OK(args...))).ReadAll()
		if err != nil || len(rows) == 0 {
			t.Errorf("vouch %q: %v, %d rows", args, err, len(rows))
		}
	}
	for _, args := range [][]string{
		{"log", "report", "--output", "json"}, {"log", "prove", "1", "--output", "json"},
		{"log", "consistency", "1", "2", "--output", "json"}, {"log", "explain", "--since", "1h", "--output", "json"}, {"log", "explain", "1", "--output", "json"},
	} {
		if out := h.OK(args...); !json.Valid([]byte(out)) {
			t.Errorf("vouch %q prints\n%s", args, out)
		}
	}
	var proof struct{ Key, Proof string }
	must(t, json.Unmarshal([]byte(h.OK("log", "prove", "1", "--output", "json")), &proof))
	must(t, os.WriteFile(h.Path("proof.json"), []byte(h.OK("log", "prove", "1", "--output", "json")), 0o600))
	must(t, os.WriteFile(h.Path("proof.txt"), []byte(h.OK("log", "prove", "1")), 0o600))
	if h.Read("proof.txt") != proof.Proof {
		t.Error("the two forms of a proof differ")
	}
	if _, _, err := reader.CheckProof([]byte(proof.Proof), proof.Key); err != nil {
		t.Error(err)
	}
	for _, file := range []string{"proof.json", "proof.txt"} {
		if out := h.OK("log", "verify-proof", "--key", proof.Key, h.Path(file), "--output", "json"); !json.Valid([]byte(out)) {
			t.Errorf("%s: verify-proof prints\n%s", file, out)
		}
	}
}

// TestNormalDayOfADaemonVerifiesWithoutAWarning makes the daemon record what a day
// has: starts and stops, grants that end in each way, renewals, refusals, reloads.
func TestNormalDayOfADaemonVerifiesWithoutAWarning(t *testing.T) {
	t.Parallel()
	h, _ := newLeasingHost(t)
	h.Write("credentials.d/b.yaml", "credentials:\n  - {name: app, broker: static, bind: lease, max_ttl: 1h, static: {secret: app-key, disclosable: true}}\n")
	h.Write("entries.d/a.yaml", strings.Replace(h.Read("entries.d/a.yaml"), "tides,", "tides, app,", 1))
	h.Start()
	if _, stderr, code := h.VouchReads([]byte("a-value"), "secret", "seal", "app-key"); code != 0 {
		t.Fatal(stderr)
	}
	h.OK("fetch", "x509")
	h.OK("fetch", "jwt", "--audience", "api")
	a := leasetest.StartAgent(t, h.Host)
	a.Exit(t) // a lease ends with its process
	h.OK("get", "tides-for-all", "--field", "username")
	h.OK("lease", "revoke", "--credential", "tides-for-all")
	for _, name := range []string{"tides-for-all", "app"} { // renewed, and given up by its holder
		c, err := client.New("unix://" + h.Path("agent.sock"))
		must(t, err)
		lease, _, err := c.Grant(t.Context(), &credentialv1.GrantCredentialRequest{Name: name})
		must(t, err)
		if name == "tides-for-all" {
			_, err := c.Renew(t.Context(), lease.Id, 10*time.Minute)
			must(t, err)
		}
		must(t, c.Revoke(t.Context(), lease.Id))
		must(t, c.Close())
	}
	if _, _, code := h.Vouch("get", "ungranted"); code == 0 {
		t.Fatal("got what is not granted")
	}
	h.OK("get", "app", "--field", "value", "--ttl", "1s")
	eventually(t, "each lease has ended", func() bool {
		out, _, _ := h.Vouch("lease", "list")
		return out == ""
	})
	h.Write("entries.d/b.yaml", "entries: [oops\n")
	eventually(t, "a reload is refused", func() bool {
		out, _, _ := h.Vouch("log", "show", "--event", "config.reload", "--outcome", "error")
		return out != ""
	})
	must(t, os.Remove(h.Path("entries.d/b.yaml")))
	h.Stop()
	h.Start()
	h.OK("fetch", "x509")
	h.Stop()

	var r reader.Report
	must(t, json.Unmarshal([]byte(h.OK("log", "verify", "--output", "json")), &r))
	for _, f := range r.Findings {
		if f.Severity != reader.Note {
			t.Errorf("%s at record %d: %s", f.Name, *f.Index, f.Message)
		}
	}
	if r.Events["lease.renew"] != 1 || r.Events["lease.revoke_intent"] != 2 || r.Events["lease.end"] != 2 || r.Events["lease.revoke"] != 3 {
		t.Errorf("the day had %v", r.Events)
	}
	// That any program of this user may have the identity, is by the test's entry.
	for line := range strings.Lines(h.OK("log", "report")) {
		if strings.HasPrefix(line, "  ! ") && !strings.Contains(line, "different programs had this identity") {
			t.Errorf("on a normal day the report says %s", line)
		}
	}
}
