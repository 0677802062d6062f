package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

func TestCommandLineAgainstARunningDaemon(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesForVouch())
	h.Start()
	pid := fmt.Sprint(os.Getpid())
	for _, tt := range []struct {
		args     []string
		code     int
		out, err string // regular expressions
	}{
		{[]string{"status"}, 0, `trust domain\s+example\.org`, `^$`},
		{[]string{"doctor"}, 0, `daemon: serving 2 entries of example\.org`, `^$`},
		{[]string{"check"}, 0, `is valid: 2 entries`, `^$`},
		{[]string{"entry", "list"}, 0, `spiffe://example\.org/cli  \(.*a\.yaml:2\)`, `^$`},
		{[]string{"entry", "explain", pid}, 0, `(?s)kernel-enforced\s+unix:uid:\d+.*matches:\s+spiffe://example\.org/cli.*almost spiffe://example\.org/other.*unix:gid:64999`, `^$`},
		{[]string{"entry", "explain", "--self"}, 0, `matches:`, `^$`},
		{[]string{"entry", "explain"}, 2, `^$`, `give a PID, or --self`},
		{[]string{"entry", "new", "--from-pid", pid, "--spiffe-id", "spiffe://example.org/new"}, 0, `(?s)spiffe_id: spiffe://example.org/new.*unix:user:.*unix:sha256:`, `^$`},
		{[]string{"entry", "explain", "0"}, 2, `^$`, `vouch: "0" is not a process ID`},
		{[]string{"entry", "explain", "4194303"}, 1, `^$`, `vouch: .*4194303`},
		{[]string{"fetch", "x509"}, 0, `spiffe://example\.org/cli\tvalid until`, `^$`},
		{[]string{"fetch", "jwt", "--audience", "api"}, 0, `^[\w-]+\.[\w-]+\.[\w-]+\n$`, `^$`},
		{[]string{"fetch", "jwt", "--audience", "api", "--spiffe-id", "spiffe://example.org/other"}, 1, `^$`, `not entitled to the requested SPIFFE ID; ask`},
		{[]string{"fetch", "jwt"}, 2, `^$`, `--audience`},
		{[]string{"fetch", "bundle"}, 0, `BEGIN CERTIFICATE`, `^$`},
		{[]string{"fetch", "x509", "--socket", "unix:///nonexistent/agent.sock", "--timeout", "100ms"}, 1, `^$`, `vouch: fetching X509-SVIDs`},
		{[]string{"log", "show", "--event", "x509_svid"}, 0, `success\s+x509_svid\.issue\s+spiffe://example\.org/cli`, `^$`},
		{[]string{"log", "show", "--since", "1h", "--event", "daemon"}, 0, `daemon\.start`, `^$`},
		{[]string{"log", "show", "--spiffe-id", "spiffe://example.org/nobody"}, 0, `^$`, `^$`},
		{[]string{"log", "verify", "--live"}, 0, `^The log holds`, `^$`},
	} {
		out, stderr, code := h.Vouch(tt.args...)
		if code != tt.code || !regexp.MustCompile(tt.out).MatchString(out) || !regexp.MustCompile(tt.err).MatchString(stderr) {
			t.Errorf("vouch %s exits %d, want %d\n-- out, want %s --\n%s-- err, want %s --\n%s", strings.Join(tt.args, " "), code, tt.code, tt.out, out, tt.err, stderr)
		}
	}
}

func TestCommandLineSpeaksJSON(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesForVouch())
	h.Start()
	for _, args := range [][]string{
		{"status"}, {"doctor"}, {"check"}, {"entry", "list"}, {"entry", "explain", fmt.Sprint(os.Getpid())},
		{"fetch", "x509"}, {"fetch", "jwt", "--audience", "api"}, {"fetch", "bundle"}, {"log", "verify", "--live"},
	} {
		out, stderr, code := h.Vouch(append(args, "--output", "json")...)
		if code != 0 || !json.Valid([]byte(out)) {
			t.Errorf("vouch %s exits %d with\n%s%s", strings.Join(args, " "), code, out, stderr)
		}
	}
	out, _, _ := h.Vouch("status", "--output", "json")
	var st view.Status
	must(t, json.Unmarshal([]byte(out), &st))
	if st.TrustDomain != "example.org" || st.Entries.Count != 2 || st.Log.Records == 0 || st.Problems == nil {
		t.Errorf("status = %+v", st)
	}
	out, _, _ = h.Vouch("log", "show", "--output", "json")
	for line := range strings.Lines(out) {
		if _, err := audit.DecodeLeaf([]byte(strings.TrimSpace(line))); err != nil {
			t.Errorf("a line of log show is not a record: %v", err)
		}
	}
}

func TestFetchWritesFilesOthersCannotRead(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesForVouch())
	h.Start()
	dir := h.Path("svid")
	for range 2 { // again, over the old ones
		if _, stderr, code := h.Vouch("fetch", "x509", "--write", dir); code != 0 {
			t.Fatalf("exits %d: %s", code, stderr)
		}
	}
	for name, mode := range map[string]os.FileMode{"svid.0.pem": 0o644, "svid.0.key": 0o600, "bundle.0.pem": 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		must(t, err)
		if info.Mode() != mode {
			t.Errorf("%s has mode %v, want %v", name, info.Mode(), mode)
		}
	}
	left, err := os.ReadDir(dir)
	must(t, err)
	if len(left) != 3 {
		t.Errorf("%d files are in the directory, want 3", len(left))
	}
}

func TestDoctorWithoutADaemonSaysHowToStartIt(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	out, _, code := h.Vouch("doctor")
	if code != 1 || !strings.Contains(out, "systemctl start vouchd") {
		t.Errorf("exits %d and says\n%s", code, out)
	}
	if _, stderr, code := h.Vouch("status"); code != 1 || !strings.Contains(stderr, "vouch doctor") {
		t.Errorf("status exits %d and says %s", code, stderr)
	}
}

func TestLogCommandsWorkOnACopyAlone(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesForVouch())
	h.Start()
	ok := func(args ...string) string {
		t.Helper()
		out, stderr, code := h.Vouch(args...)
		if code != 0 {
			t.Fatalf("vouch %s exits %d:\n%s%s", strings.Join(args, " "), code, out, stderr)
		}
		return out
	}
	ok("fetch", "x509")
	ok("fetch", "jwt", "--audience", "api")
	h.Stop()
	log := h.Path("copy")
	must(t, os.CopyFS(log, os.DirFS(h.Path("state/log"))))

	trace := ok("log", "verify", "--trace", log)
	for _, want := range []string{`cli\s+x509 to pid \d+ of user \d+ <- issuing CA \(record \d+\)\s+<- node key <- AK <- TPM`, `cli\s+jwt\s+.*<- JWT key \(record \d+\)\s+<- AK <- TPM`} {
		if !regexp.MustCompile(want).MatchString(trace) {
			t.Errorf("the trace has no %s:\n%s", want, trace)
		}
	}
	key := regexp.MustCompile(`(?m)^  key +(\S+)$`).FindStringSubmatch(trace)[1]
	index := regexp.MustCompile(`(?m)^(\d+) .*x509_svid`).FindStringSubmatch(ok("log", "show", log))[1]

	if story := ok("log", "explain", index, log); !strings.Contains(story, "machine") || !strings.Contains(story, "spiffe://example.org/cli") {
		t.Errorf("explain says\n%s", story)
	}
	if report := ok("log", "report", log); !strings.Contains(report, "spiffe://example.org/cli") {
		t.Errorf("report says\n%s", report)
	}
	must(t, os.WriteFile(h.Path("proof"), []byte(ok("log", "prove", index, log)), 0o600))
	if said := ok("log", "verify-proof", "--key", key, h.Path("proof")); !strings.Contains(said, "spiffe://example.org/cli") {
		t.Errorf("verify-proof says\n%s", said)
	}
	if _, _, code := h.Vouch("log", "verify-proof", h.Path("proof")); code != 2 {
		t.Errorf("verify-proof without a key exits %d, want 2", code)
	}
	ok("log", "consistency", "1", index, log)
	ok("log", "archive", "--write", h.Path("log.tar"), log)
	ok("log", "verify", h.Path("log.tar"))

	// A byte of the hand-out's record changes.
	segments, err := filepath.Glob(log + "/wal/*")
	must(t, err)
	data, err := os.ReadFile(segments[0])
	must(t, err)
	must(t, os.WriteFile(segments[0], []byte(strings.Replace(string(data), "example.org/cli", "example.org/cla", 1)), 0o600))
	if out, _, code := h.Vouch("log", "verify", log); code != 1 || !strings.Contains(out, "does not hold") {
		t.Errorf("verify of a changed log exits %d and says\n%s", code, out)
	}
}

func TestVersionNamesTheModules(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"vouch", "vouchd"} {
		out, err := exec.Command(daemontest.Program(t, program), "--version").Output()
		if err != nil || !matches(`^`+program+` version \S+ .*go1\.\d+.*\n`, string(out)) || !matches(`(?m)^  github\.com/google/go-tpm v0\.\d+\.\d+$`, string(out)) {
			t.Errorf("%s --version: %v\n%s", program, err, out)
		}
	}
}
