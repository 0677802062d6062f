package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"
)

const dotEnv = `# of the example
export STRIPE_KEY="sk_live_canary-1" # live
OPENAI_API_KEY='sk-canary-2'
TLS_KEY="-----BEGIN KEY-----
canary-3
-----END KEY-----"
DATABASE_URL=postgres://app:canary-4@db.internal/app?sslmode=require
WITH_ESCAPES="canary\n5"
PORT=8080
DEBUG=true
LOG_LEVEL=info
API_URL=https://api.example.org/v1
EMPTY=
STRIPE_KEY='sk_live_canary-1'
`

// newMigratingHost returns a host with a file to migrate.
func newMigratingHost(t *testing.T, text string) (*host, string) {
	t.Helper()
	h := newHost(t)
	must(t, os.Mkdir(h.Path("credentials.d"), 0o755))
	h.Write("app.env", text)
	return h, h.Path("app.env")
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

func TestMigratedFileHoldsHandlesAndItsProgramTheSameValues(t *testing.T) {
	t.Parallel()
	h, file := newMigratingHost(t, dotEnv)
	must(t, os.Chmod(file, 0o640))
	must(t, os.Chown(file, 1234, 2345))
	h.Start()
	before := environment(h, file)

	out := h.OK("migrate", "env", file, "--credential-prefix", "app", "--dry-run")
	for _, want := range []string{"app.env:2: STRIPE_KEY would be sealed as app-stripe-key", "app.env:10: DEBUG kept as is: a switch", "app.env:9: PORT kept as is: looks harmless"} {
		if !strings.Contains(out, want) {
			t.Errorf("the dry run does not say %q:\n%s", want, out)
		}
	}
	secrets, err := h.Admin().Secrets.List(t.Context())
	must(t, err)
	if read(t, file) != dotEnv || len(secrets) != 0 {
		t.Fatal("a dry run changes something")
	}

	out = h.OK("migrate", "env", file, "--credential-prefix", "app", "--disclosable")
	if !strings.Contains(out, "credentials: [app-database-url, app-openai-api-key, app-stripe-key, app-tls-key, app-with-escapes]") {
		t.Errorf("no line for the entry in\n%s", out)
	}
	want := strings.NewReplacer(`"sk_live_canary-1"`, "vouch:app-stripe-key", `'sk-canary-2'`, "vouch:app-openai-api-key", `'sk_live_canary-1'`, "vouch:app-stripe-key",
		"\"-----BEGIN KEY-----\ncanary-3\n-----END KEY-----\"", "vouch:app-tls-key", "postgres://app:canary-4@db.internal/app?sslmode=require", "vouch:app-database-url",
		`"canary\n5"`, "vouch:app-with-escapes").Replace(dotEnv)
	if got := read(t, file); got != want {
		t.Errorf("the file is\n%s\nwant\n%s", got, want)
	}
	info, err := os.Stat(file)
	must(t, err)
	if info.Mode() != 0o640 || owner(info) != [2]uint32{1234, 2345} {
		t.Errorf("the file has mode %v and owner %v", info.Mode(), owner(info))
	}
	h.CheckSecret(leasetest.Login{Password: "canary"})

	h.OK("check")
	definitions := h.Path("credentials.d/app.yaml")
	must(t, os.Rename(definitions+".disabled", definitions))
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/app\", selectors: [\"unix:uid:%d\"], credentials: [app-database-url, app-openai-api-key, app-stripe-key, app-tls-key, app-with-escapes]}\n", os.Getuid()))
	h.OK("check")
	eventually(t, "the definitions and the entry are in force", func() bool {
		st, err := h.Admin().Status(t.Context())
		must(t, err)
		return st.Credentials.Count == 5 && st.Entries.Count == 1
	})
	if after := environment(h, file); !slices.Equal(after, before) {
		t.Errorf("the program had\n%q\nand has\n%q", before, after)
	}

	// Again: nothing is left to do.
	out = h.OK("migrate", "env", file, "--credential-prefix", "app", "--proxy-later")
	if read(t, file) != want || !strings.Contains(out, "STRIPE_KEY kept as is: already a handle") || strings.Contains(out, "Review") {
		t.Errorf("once more it says\n%s", out)
	}
}

// environment is what a program is started with from a file.
func environment(h *host, file string) (vars []string) {
	h.T.Helper()
	out := h.OK("exec", "--env-file", file, "--", "env", "-0")
	for v := range strings.SplitSeq(out, "\x00") {
		if name, _, _ := strings.Cut(v, "="); strings.Contains(dotEnv, name+"=") && name != "" {
			vars = append(vars, v)
		}
	}
	slices.Sort(vars)
	if len(vars) != 10 {
		h.T.Errorf("the program has %d variables of the file: %q", len(vars), vars)
	}
	return vars
}

func TestMigrationThatWasCutShortGoesOn(t *testing.T) {
	t.Parallel()
	h, file := newMigratingHost(t, "A_KEY=canary-1\nB_KEY=canary-2\n")
	h.Start()
	// A former run has sealed the first and died.
	h.VouchReads([]byte("canary-1"), "secret", "seal", "app-a-key")
	h.OK("migrate", "env", file, "--credential-prefix", "app", "--proxy-later")
	if got := read(t, file); got != "A_KEY=vouch:app-a-key\nB_KEY=vouch:app-b-key\n" {
		t.Errorf("the file is\n%s", got)
	}
	definitions := read(t, h.Path("credentials.d/app.yaml.disabled"))
	if strings.Count(definitions, "disclosable: false") != 2 {
		t.Errorf("definitions are\n%s", definitions)
	}
	// And one more variable comes later, when the definitions were reviewed.
	reviewed := strings.Replace(definitions, "disclosable: false", "disclosable: true", 1)
	h.Write("credentials.d/app.yaml.disabled", reviewed)
	h.Write("app.env", read(t, file)+"C_KEY=canary-3\n")
	h.OK("migrate", "env", file, "--credential-prefix", "app", "--proxy-later")
	if now := read(t, h.Path("credentials.d/app.yaml.disabled")); !strings.HasPrefix(now, reviewed) || strings.Count(now, "- name:") != 3 {
		t.Errorf("definitions are\n%s", now)
	}
}

func TestNothingIsLostWhereAFileCannotBeMigrated(t *testing.T) {
	t.Parallel()
	h, file := newMigratingHost(t, "")
	h.Start()
	h.VouchReads([]byte("another value"), "secret", "seal", "app-b-key")
	for _, tt := range []struct{ name, text, want string }{
		{"a line that makes no sense", "A_KEY=canary\nnonsense canary\n", `app.env: line 2: is neither`},
		{"a quote that nothing closes", "A_KEY=canary\nB='canary\n", `app.env: line 2: has a quote that nothing closes`},
		{"two values of one variable", "A_KEY=canary\nA_KEY=canary-2\n", `line 2: A_KEY has a different value on line 1`},
		{"a value and a handle of one variable", "A_KEY=canary\nA_KEY=vouch:x\n", `line 2: A_KEY is given twice`},
		{"a value that some expand", "A_KEY=pa$$canary\n", `line 1: value of A_KEY: some expand .* single quotes around it`},
		{"a value that begins with #", "A_KEY=canary\nB_KEY=#canary\n", `line 2: value of B_KEY: some read #`},
		{"two variables of one name", "A_KEY=canary\nA-KEY=canary\n", `A-KEY and A_KEY would both be app-a-key`},
		{"a secret that is sealed with another value", "A_KEY=canary\nB_KEY=canary\n", `secret app-b-key: another value .* is unchanged`},
	} {
		h.Write("app.env", tt.text)
		_, stderr, code := h.Vouch("migrate", "env", file, "--credential-prefix", "app", "--disclosable")
		if code != 1 || !matches(tt.want, stderr) || strings.Contains(stderr, "canary") {
			t.Errorf("%s exits %d: %s, want %s", tt.name, code, stderr, tt.want)
		}
		if got := read(t, file); got != tt.text {
			t.Errorf("%s: the file is now\n%s", tt.name, got)
		}
	}
	h.Write("app.env", "A_KEY=canary\n")
	must(t, os.Symlink(file, h.Path("link")))
	must(t, os.Link(file, h.Path("second")))
	for name, want := range map[string]string{"link": "symbolic link", "second": "has 2 hard links", "missing": "no such file", "entries.d": "not a regular file"} {
		if _, stderr, code := h.Vouch("migrate", "env", h.Path(name), "--credential-prefix", "app"); code != 1 || !strings.Contains(stderr, want) {
			t.Errorf("%s exits %d: %s, want %s", name, code, stderr, want)
		}
	}
	for _, args := range [][]string{{"migrate", "env", file}, {"migrate", "env", file, "--credential-prefix", "a b"}, {"migrate", "env"}, {"migrate"}} {
		if _, stderr, code := h.Vouch(args...); code != 2 {
			t.Errorf("vouch %s exits %d: %s", strings.Join(args, " "), code, stderr)
		}
	}
	if left, err := filepath.Glob(h.Path(".app.env*")); err != nil || len(left) > 0 {
		t.Errorf("%q is left", left)
	}
}

func TestWhatLooksLikeASecretIsSealedUnlessSaidOtherwise(t *testing.T) {
	t.Parallel()
	h, file := newMigratingHost(t, "ADMIN_PIN=1234\nMODEL=gpt-4o-2026\nWEBHOOK=https://hooks.example.org/T0/B0/xyz\nREGION=eu-central-1\nHOST=db1.internal:5432\nWORD=info\n# OLD_KEY=sk_live_canary\n")
	h.Start()
	out := h.OK("migrate", "env", file, "--credential-prefix", "app", "--keep", "MODEL", "--seal", "WORD", "--disclosable")
	want := "ADMIN_PIN=vouch:app-admin-pin\nMODEL=gpt-4o-2026\nWEBHOOK=vouch:app-webhook\nREGION=eu-central-1\nHOST=db1.internal:5432\nWORD=vouch:app-word\n# OLD_KEY=sk_live_canary\n"
	if got := read(t, file); got != want {
		t.Errorf("the file is\n%s\nwant\n%s", got, want)
	}
	if !strings.Contains(out, "app.env:7: OLD_KEY: a comment that may contain a secret; remove it") {
		t.Errorf("it says\n%s", out)
	}
}

func TestEachVariableIsSealedOrKeptForAReasonThatIsSaid(t *testing.T) {
	t.Parallel()
	sealed := []string{
		"EMAIL_PASS=hunter", "DB_PASS=hunter", "SMTP_PASS=hunter", "PASS=hunter", "FTP_PW=hunter", "MYSQL_PWD=hunter", "GMAIL=abcdefghijklmnop",
		"NOTIFY=https://hooks.zapier.com/catch/abc/def", "FLOW=https://hook.eu.make.com/abcdefghijkl", "SLACK=https://hooks.slack.com/services/a/b/c",
		"BOT=https://api.telegram.org/bot/sendmessage", "REPORTS=https://u:p@reports.example.org", "FEED=https://example.org/feed?k=abc",
		"SENTRY_DSN=https://o.ingest.sentry.io/a", "IFTTT=https://maker.ifttt.com/trigger/a/with/b", "AZURE_CONNECTION_STRING=local",
	}
	kept := []string{
		"GOOGLE_APPLICATION_CREDENTIALS=/etc/app/sa.json", "TLS_KEY_FILE=/etc/app/tls.key", "PORT=8080", "DEBUG=true", "API_URL=https://api.example.org/v1",
		"LOG_LEVEL=info", "REGION=eu-central-1", "CACHE_TTL=30s", "BIND=10.0.0.1:80", "EMPTY=",
	}
	h, file := newMigratingHost(t, strings.Join(append(slices.Clone(sealed), kept...), "\n")+"\n")
	h.Start()
	out := h.OK("migrate", "env", file, "--credential-prefix", "app", "--disclosable")
	after := read(t, file)
	for i, line := range append(slices.Clone(sealed), kept...) {
		name, _, _ := strings.Cut(line, "=")
		verb := "sealed as .*: (named like a secret|a URL that may be a secret|its value is nothing plain)"
		if i >= len(sealed) {
			verb = "kept as is: .+"
		}
		if !matches(fmt.Sprintf(`app.env:%d: %s %s`, i+1, name, verb), out) {
			t.Errorf("of %s it does not say %s:\n%s", line, verb, out)
		}
		if strings.Contains(after, line+"\n") != (i >= len(sealed)) {
			t.Errorf("%s is treated wrongly in\n%s", line, after)
		}
	}
}

func TestFileThatItsProgramCouldNotBeStartedWithIsLeftAlone(t *testing.T) {
	t.Parallel()
	const text = "OPENAI_API_KEY=sk-canary\nDB_PASS=canary\n"
	h, file := newMigratingHost(t, text)
	h.Start()
	_, stderr, code := h.Vouch("migrate", "env", file, "--credential-prefix", "app")
	if code != 1 || !matches(`line 2: no preset makes calls with DB_PASS, .*--disclosable`, stderr) || strings.Contains(stderr, "OPENAI") {
		t.Errorf("it exits %d: %s", code, stderr)
	}
	secrets, err := h.Admin().Secrets.List(t.Context())
	must(t, err)
	if read(t, file) != text || len(secrets) != 0 {
		t.Error("something was changed nevertheless")
	}
	h.OK("migrate", "env", file, "--credential-prefix", "app", "--keep", "DB_PASS")
	if got := read(t, file); got != "OPENAI_API_KEY=vouch:app-openai-api-key\nDB_PASS=canary\n" {
		t.Errorf("the file is\n%s", got)
	}
}

func owner(info os.FileInfo) [2]uint32 {
	st := info.Sys().(*syscall.Stat_t)
	return [2]uint32{st.Uid, st.Gid}
}
