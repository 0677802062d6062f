package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/attest"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

func (f Finding) check(t *testing.T, level, text string) {
	t.Helper()
	if f.Level != level || !strings.Contains(f.Text, text) {
		t.Errorf("%+v, want %s with %q", f, level, text)
	}
}

func TestDoctorExplainsTheTPM(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	device := filepath.Join(dir, "tpmrm0")
	must(t, os.WriteFile(device, nil, 0o660))
	must(t, os.Chmod(device, 0o660))
	must(t, os.Mkdir(filepath.Join(dir, "tpm0"), 0o755))
	version := filepath.Join(dir, "tpm0", "tpm_version_major")
	must(t, os.WriteFile(version, []byte("2\n"), 0o644))
	info, err := os.Stat(device)
	must(t, err)
	group := info.Sys().(*syscall.Stat_t).Gid
	root, other, member := account{name: "root"}, account{"vouchd", 64998, []uint32{64998}}, account{"vouchd", 64998, []uint32{64998, group}}

	tpmFinding(device, dir, root).check(t, OK, device)
	tpmFinding(device, dir, member).check(t, OK, device)
	tpmFinding(device, dir, other).check(t, Problem, "vouchd cannot open "+device+" (mode 0660")
	tpmFinding(filepath.Join(dir, "none"), dir, root).check(t, Problem, "enable the TPM 2.0 in the firmware's setup")
	tpmFinding("unix:"+filepath.Join(dir, "none"), dir, root).check(t, Problem, "start swtpm")
	tpmFinding("unix:"+device, dir, root).check(t, Note, "software TPM")
	must(t, os.WriteFile(version, []byte("1\n"), 0o644))
	tpmFinding(device, dir, root).check(t, Problem, "version 1.2; switch the firmware")
	tpmFinding(filepath.Join(dir, "none"), dir, root).check(t, Problem, "version 1.2")
}

func TestDoctorExplainsTheKernel(t *testing.T) {
	t.Parallel()
	peerPIDFDFinding(nil).check(t, OK, "SO_PEERPIDFD")
	peerPIDFDFinding(unix.ENOPROTOOPT).check(t, Note, "it has no SO_PEERPIDFD (Linux 6.5)")
	cgroupFinding(unix.CGROUP2_SUPER_MAGIC).check(t, OK, "version 2")
	cgroupFinding(unix.TMPFS_MAGIC).check(t, Note, "version 1 or hybrid")
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	clockFinding(now, now.Add(-time.Hour), true).check(t, OK, "synchronised")
	clockFinding(now, now.Add(-time.Hour), false).check(t, Note, "systemd-timesyncd or chrony")
	clockFinding(time.Unix(1000, 0), now, true).check(t, Problem, "it says 1970-01-01, but this program was built 2026-11-23; set it")
}

func TestDoctorExplainsABlockedSocket(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "vd") // short, because a socket's path is
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "agent.sock")
	examineSocket(ctx, path).check(t, Problem, "systemctl start vouchd")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	examineSocket(ctx, path).check(t, OK, "accepts connections")
	l.SetUnlinkOnClose(false)
	must(t, l.Close())
	examineSocket(ctx, path).check(t, Problem, "left over from a daemon that was killed")
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	examineSocket(ctx, file).check(t, Problem, "nothing listens on it")
}

func TestDoctorNamesEntriesThatCanNeverMatch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(`entries:
  - spiffe_id: spiffe://example.org/fine
    selectors: ["unix:uid:0"]
  - spiffe_id: spiffe://example.org/unit
    selectors: ["systemd:id:agent.service"]
  - spiffe_id: spiffe://example.org/gone
    selectors: ["unix:path:/nonexistent/agent", "unix:uid:7"]
  - spiffe_id: spiffe://example.org/nobody-of-that-name
    selectors: ["unix:user:no-such-user-here"]
  - spiffe_id: spiffe://example.org/confined
    selectors: ["apparmor:profile:agent", "unix:uid:7"]
`), 0o644))
	c, err := config.Parse("vouchd.yaml", []byte("trust_domain: example.org\nentries_dir: "+dir))
	must(t, err)
	findings := examineEntries(c, hostFacts{lsm: "lockdown,capability"})
	var all strings.Builder
	for _, f := range findings {
		all.WriteString(f.Level + " " + f.Text + "\n")
	}
	for _, want := range []string{
		"ok 5 in ", "a.yaml:4: spiffe://example.org/unit: systemd:id:agent.service cannot match on this host: systemd is not PID 1",
		"a.yaml:6: spiffe://example.org/gone: unix:path:/nonexistent/agent cannot match on this host: there is no such file",
		"unix:user:no-such-user-here cannot match on this host: /etc/passwd has no such user", "apparmor:profile:agent cannot match on this host: the kernel runs without apparmor (it has lockdown,capability)",
	} {
		if !strings.Contains(all.String(), want) {
			t.Errorf("no %q in\n%s", want, all.String())
		}
	}
	if len(findings) != 5 {
		t.Errorf("%d findings:\n%s", len(findings), all.String())
	}
	for _, s := range []string{"systemd:id:agent.service", "apparmor:profile:agent", "ima:sha256:" + strings.Repeat("ab", 32)} {
		sel, err := attest.ParseSelector(s)
		must(t, err)
		if why := (hostFacts{systemd: true, lsm: "capability,apparmor", ima: true}).never(sel); why != "" {
			t.Errorf("%s on a host that has all: %s", s, why)
		}
	}
}

func TestDoctorNamesUnanchoredEntries(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(`entries:
  - spiffe_id: spiffe://example.org/lab
    selectors: ["unix:path:/bin/true"]
    allow_unanchored: true
  - spiffe_id: spiffe://example.org/firm
    selectors: ["unix:uid:1000"]
`), 0o644))
	c, err := config.Parse("vouchd.yaml", []byte("trust_domain: example.org\nentries_dir: "+dir+"\n"))
	must(t, err)
	findings := examineEntries(c, hostFacts{})
	if len(findings) != 2 {
		t.Fatalf("got %+v, want the entries and the one unanchored", findings)
	}
	findings[1].check(t, Note, "a.yaml:2: spiffe://example.org/lab is unanchored")
	c.Authority.Mode, c.Authority.SPIRE.Server = config.ModeSPIRE, "spire.example.org:8081"
	findings = examineEntries(c, hostFacts{})
	if len(findings) != 1 {
		t.Fatalf("got %+v of files that are not in force", findings)
	}
	findings[0].check(t, OK, "those of SPIRE server spire.example.org:8081")
}

func TestDoctorTellsOfCertificatesNearTheirEnd(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, tt := range []struct {
		left        time.Duration
		level, text string
	}{
		{60 * 24 * time.Hour, "", ""},
		{20*24*time.Hour + time.Minute, Note, "expires in 480h0m0s"},
		{5*24*time.Hour + time.Minute, Problem, "expires in 120h0m0s"},
		{-time.Hour, Problem, "has expired"},
	} {
		st := view.Status{Authority: view.AuthorityStatus{RootNotAfter: now.Add(tt.left)}}
		st.Node.Enrolment = &view.Enrolment{NotAfter: now.Add(tt.left)}
		fs := certificateFindings(st, now)
		if tt.level == "" {
			if len(fs) > 0 {
				t.Errorf("with %s left: %+v", tt.left, fs)
			}
			continue
		}
		if len(fs) != 2 {
			t.Fatalf("with %s left: %+v", tt.left, fs)
		}
		fs[0].check(t, tt.level, "enrolment "+tt.text)
		fs[1].check(t, tt.level, "root certificate "+tt.text)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
}

func TestDoctorExplainsWhatForbidsASandbox(t *testing.T) {
	t.Parallel()
	settings := func(set ...string) func(string) string {
		return func(name string) string {
			for i := 0; i < len(set); i += 2 {
				if set[i] == name {
					return set[i+1]
				}
			}
			return ""
		}
	}
	eperm := fmt.Errorf("making namespaces: %w", unix.EPERM)
	sandboxFinding(nil, "", false, settings()).check(t, OK, "works")
	sandboxFinding(nil, "", false, settings("kernel/unprivileged_userns_clone", "1", "user/max_user_namespaces", "96365")).check(t, OK, "works")
	sandboxFinding(nil, "without Landlock", false, settings()).check(t, Note, "works; without Landlock")
	sandboxFinding(unix.ENOSPC, "", false, settings("user/max_user_namespaces", "0")).check(t, Note, "sysctl -w user.max_user_namespaces=10000")
	sandboxFinding(eperm, "", false, settings("kernel/unprivileged_userns_clone", "0")).check(t, Note, "sysctl -w kernel.unprivileged_userns_clone=1")
	sandboxFinding(nil, "", true, settings("kernel/unprivileged_userns_clone", "0")).check(t, Note, "root can make one, but kernel.unprivileged_userns_clone is 0")
	sandboxFinding(eperm, "", false, settings("kernel/apparmor_restrict_unprivileged_userns", "1")).check(t, Note, "/usr/share/vouchd/apparmor/vouch")
	sandboxFinding(eperm, "", false, settings()).check(t, Note, "in a container")
	sandboxFinding(unix.ENOSPC, "", false, settings()).check(t, Note, "used up")
	sandboxFinding(errors.New("mounting /proc"), "", false, settings()).check(t, Note, "mounting /proc")
}
