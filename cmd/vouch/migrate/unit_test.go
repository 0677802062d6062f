package migrate

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/cmd/vouch/migrate/held"
	"github.com/vouchd/vouchd/inventory"
)

// plannedUnit plans for files of a unit, of which the first is migrated.
func plannedUnit(t *testing.T, m *options, files ...[2]string) (p *plan, after string, err error) {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "vouchd.yaml"), []byte("trust_domain: example.org\n"), 0o600))
	for _, f := range files {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, f[0])), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, f[0]), []byte(strings.ReplaceAll(f[1], "DIR", dir)), 0o644))
	}
	m.Options, m.prefix = &cli.Options{Config: filepath.Join(dir, "vouchd.yaml")}, "app"
	f, err := held.Open(filepath.Join(dir, files[0][0]))
	must(t, err)
	t.Cleanup(f.Close)
	p = newPlan(m, f, "vouch migrate unit")
	if err := planUnit(p); err != nil {
		return p, "", err
	}
	b, err := p.finish()
	if err == nil {
		leftBehind(p, inventory.Unit, b)
	}
	return p, strings.ReplaceAll(string(b), dir, "DIR"), err
}

func TestUnitGetsItsSecretsFromVouchd(t *testing.T) {
	t.Parallel()
	vouch, err := program()
	must(t, err)
	for _, tt := range []struct {
		name  string
		files [][2]string
		want  string
	}{
		{"variables", [][2]string{{"a.service", "# mine\n[Service]\nType=notify\nEnvironment=\"GITHUB_TOKEN=" + canary + "\" LOG=info\nExecStart=-/bin/true --x \\\n  y\nExecStop=/bin/true\n"}},
			"# mine\n[Service]\nType=notify\nEnvironment=\"GITHUB_TOKEN=vouch:app-github-token\" LOG=info\nExecStart=-" + vouch + " exec --credential app-github-token=GITHUB_TOKEN -- /bin/true --x \\\n  y\nNotifyAccess=all\nExecStop=/bin/true\n"},
		{"a drop-in", [][2]string{{"a.service.d/x.conf", "[Service]\nEnvironment=GITHUB_TOKEN=" + canary}, {"a.service", "[Service]\nExecStart=/bin/true\n"}},
			"[Service]\nEnvironment=GITHUB_TOKEN=vouch:app-github-token\n[Service]\nExecStart=\nExecStart=" + vouch + " exec --credential app-github-token=GITHUB_TOKEN -- /bin/true\n"},
		{"credentials", [][2]string{{"a.service", "[Service]\nSetCredential=api: " + canary + "\nLoadCredential=tls.key:DIR/key\nExecStart=/bin/true\n"}, {"key", canary2}},
			"[Service]\nLoadCredential=api:/run/vouchd/systemd.sock\nLoadCredential=tls.key:/run/vouchd/systemd.sock\nExecStart=/bin/true\n"},
		{"a file of handles", [][2]string{{"a.service", "[Service]\nEnvironmentFile=-DIR/env\nExecStart=/bin/true\n"}, {"env", "A=vouch:x\n"}},
			"[Service]\nEnvironmentFile=-DIR/env\nExecStart=" + vouch + " exec --env-file DIR/env -- /bin/true\n"},
	} {
		p, after, err := plannedUnit(t, &options{}, tt.files...)
		if err != nil || after != tt.want || len(p.Left) > 0 {
			t.Errorf("%s: %v, left %v, it becomes\n%s\nwant\n%s", tt.name, err, p.Left, after, tt.want)
			continue
		}
		if strings.Contains(tt.files[0][0], ".d/") {
			continue // is none of its own
		}
		unit := filepath.Join(t.TempDir(), "verified.service")
		must(t, os.WriteFile(unit, []byte(strings.ReplaceAll(after, "DIR", "/etc")), 0o644))
		out, err := exec.Command("systemd-analyze", "verify", unit).CombinedOutput()
		if err != nil || strings.Contains(string(out), "verified.service") {
			t.Errorf("%s: systemd says %v: %s", tt.name, err, out)
		}
		again, same, err := plannedUnit(t, &options{}, append([][2]string{{tt.files[0][0], after}}, tt.files[1:]...)...)
		if err != nil || same != after || len(again.edits) > 0 {
			t.Errorf("%s: once more: %v\n%s", tt.name, err, same)
		}
	}
}

func TestUnitWhoseProgramWouldNotStartIsRefused(t *testing.T) {
	t.Parallel()
	secretly := "[Service]\nEnvironment=GITHUB_TOKEN=" + canary + "\n"
	for _, tt := range []struct {
		name  string
		files [][2]string
		want  string
	}{
		{"another argument zero", [][2]string{{"a.service", secretly + "ExecStart=@/bin/true x\n"}}, "argument zero"},
		{"nothing that starts", [][2]string{{"a.service", secretly}}, "no ExecStart="},
		{"two drop-ins", [][2]string{{"a.service.d/x.conf", secretly}, {"a.service.d/y.conf", "[Service]\nExecStart=/bin/true\n"}, {"a.service", "[Service]\nExecStart=/bin/true\n"}}, "y.conf sets ExecStart="},
		{"a specifier", [][2]string{{"a.service", "[Service]\nEnvironment=GITHUB_TOKEN=%%" + canary + "\nExecStart=/bin/true\n"}}, "systemd reads %"},
		{"a variable of no preset", [][2]string{{"a.service", "[Service]\nEnvironment=SHOP_TOKEN=" + canary + "\nExecStart=/bin/true\n"}}, "no preset makes calls with SHOP_TOKEN"},
		{"two files of handles", [][2]string{{"a.service", "[Service]\nEnvironmentFile=DIR/e\nEnvironmentFile=DIR/f\nExecStart=/bin/true\n"}, {"e", "A=vouch:x\n"}, {"f", "B=vouch:y\n"}}, "takes one"},
	} {
		if _, after, err := plannedUnit(t, &options{}, tt.files...); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "cnry") {
			t.Errorf("%s: %v\n%s\nwant %s", tt.name, err, after, tt.want)
		}
	}
}
