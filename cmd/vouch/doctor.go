package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/programs"
	"github.com/vouchd/vouchd/systemd"
	"github.com/vouchd/vouchd/workloadapi"
)

// A finding is one thing that was looked at.
type finding struct {
	Subject string `json:"subject"`
	Level   string `json:"level"` // ok, note, problem
	Text    string `json:"text"`  // one sentence, with the way out of a problem
}

const (
	levelOK      = "ok"
	levelNote    = "note" // works, with less than could be had
	levelProblem = "problem"
)

func newDoctor(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Look for what keeps the daemon from working, and say how to mend it",
		Long: `Doctor looks at the configuration, the TPM, the kernel and the running daemon,
and says in one sentence each what it found and how to mend what is wrong. It
exits 1 if there is a problem.`,
		Example: `  vouch doctor
  vouch doctor --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings := examine(cmd.Context(), o.config)
			if err := o.print(cmd, findings, func(w io.Writer) {
				for _, f := range findings {
					fmt.Fprintf(w, "%-8s %s: %s\n", f.Level, f.Subject, strings.ReplaceAll(f.Text, "\n", "\n         "))
				}
			}); err != nil {
				return err
			}
			for _, f := range findings {
				if f.Level == levelProblem {
					return errSaid
				}
			}
			return nil
		},
	}
}

func examine(ctx context.Context, file string) []finding {
	c, err := config.Load(file)
	if err != nil {
		return []finding{{"configuration", levelProblem, err.Error()}, examinePeerPIDFD(), examineCgroups(), examineSystemd()}
	}
	return append([]finding{
		{"configuration", levelOK, file + " is in order"},
		examineEntries(c),
		examineTPM(c.TPM),
		examinePeerPIDFD(),
		examineCgroups(),
		examineSystemd(),
		examinePrograms(c),
		examineSocket(ctx, c.AgentSocket),
	}, examineDaemon(ctx, c)...)
}

func examineEntries(c *config.Config) finding {
	es, err := identity.LoadEntries(c.EntriesDir, c.TrustDomain, identity.Limits{MaxX509TTL: c.Authority.MaxX509TTL()})
	switch {
	case err != nil:
		return finding{"entries", levelProblem, err.Error()}
	case es.Len() == 0:
		return finding{"entries", levelNote, c.EntriesDir + " has no entry, so nothing is issued; add one as in docs/configuration.md"}
	}
	return finding{"entries", levelOK, fmt.Sprintf("%d in %s", es.Len(), c.EntriesDir)}
}

func examineTPM(address string) finding {
	path, software := strings.CutPrefix(address, "unix:")
	_, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && software:
		return finding{"TPM", levelProblem, path + " is missing; start swtpm on it"}
	case errors.Is(err, fs.ErrNotExist):
		return finding{"TPM", levelProblem, path + " is missing; enable the TPM 2.0 in the firmware's setup (fTPM, PTT), or the virtual machine's vTPM"}
	case err != nil:
		return finding{"TPM", levelProblem, err.Error()}
	case software:
		return finding{"TPM", levelNote, path + " is a software TPM: fit for a trial, it proves nothing about a machine"}
	}
	if version, err := os.ReadFile("/sys/class/tpm/tpm0/tpm_version_major"); err == nil && strings.TrimSpace(string(version)) != "2" {
		return finding{"TPM", levelProblem, "the machine's TPM is of version 1.2; switch the firmware to TPM 2.0 if it offers that"}
	}
	if err := unix.Access(path, unix.R_OK|unix.W_OK); err != nil {
		return finding{"TPM", levelProblem, fmt.Sprintf("%s: %v; run as root or add the daemon's user to the group tss", path, err)}
	}
	return finding{"TPM", levelOK, path}
}

// soPeerPIDFD is SO_PEERPIDFD of Linux 6.5.
const soPeerPIDFD = 77

func examinePeerPIDFD() finding {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return finding{"kernel", levelProblem, err.Error()}
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	fd, err := unix.GetsockoptInt(fds[0], unix.SOL_SOCKET, soPeerPIDFD)
	if err != nil {
		return finding{"kernel", levelNote, "it has no SO_PEERPIDFD (Linux 6.5); peers are pinned by process ID, start time and the sender of each message instead"}
	}
	unix.Close(fd)
	return finding{"kernel", levelOK, "peers are pinned by SO_PEERPIDFD"}
}

func examineCgroups() finding {
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil {
		return finding{"control groups", levelProblem, fmt.Sprintf("/sys/fs/cgroup: %v; mount the cgroup2 file system there", err)}
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		return finding{"control groups", levelOK, "version 2"}
	}
	return finding{"control groups", levelNote, "version 1 or hybrid; cgroup selectors are of systemd's hierarchy"}
}

func examineSystemd() finding {
	if !systemd.IsManager() {
		return finding{"systemd", levelNote, "it is not PID 1 here, so there are no systemd and script selectors, and no vouch run"}
	}
	return finding{"systemd", levelOK, "it is PID 1"}
}

// examinePrograms looks whether vouch run has anything to start and where to
// ask. It does not connect, which would start its service.
func examinePrograms(c *config.Config) finding {
	defined, err := programs.Load(c.ProgramsDir, false)
	switch {
	case err != nil:
		return finding{"programs", levelProblem, err.Error()}
	case len(defined) == 0:
		return finding{"programs", levelOK, "none in " + c.ProgramsDir + ", so that vouch run starts nothing"}
	case !systemd.IsManager():
		return finding{"programs", levelNote, fmt.Sprintf("%d in %s, which vouch run cannot start without systemd as PID 1", len(defined), c.ProgramsDir)}
	}
	if info, err := os.Stat(c.RunSocket); err != nil || info.Mode().Type() != fs.ModeSocket {
		return finding{"programs", levelProblem, fmt.Sprintf("%d in %s, and vouch run finds no socket at %s; run: systemctl enable --now vouchd-programs.path", len(defined), c.ProgramsDir, c.RunSocket)}
	}
	return finding{"programs", levelOK, fmt.Sprintf("%d in %s", len(defined), c.ProgramsDir)}
}

func examineSocket(ctx context.Context, path string) finding {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return finding{"agent socket", levelProblem, fmt.Sprintf("%v; start the daemon with: systemctl start vouchd", err)}
	}
	conn.Close()
	return finding{"agent socket", levelOK, path + " accepts connections"}
}

// answerLimit is how long doctor waits for the daemon: systemd holds the
// sockets, so that connections to a daemon which cannot start succeed.
const answerLimit = 5 * time.Second

func examineDaemon(ctx context.Context, c *config.Config) []finding {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	st, err := workloadapi.NewAdminClient(c.AdminSocket).Status(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return []finding{{"daemon", levelProblem, fmt.Sprintf("nothing answers on %s within %s; see why with: journalctl -u vouchd", c.AdminSocket, answerLimit)}}
	}
	if err != nil {
		return []finding{{"daemon", levelProblem, fmt.Sprintf("%v; it answers root and its own user, see its log with: journalctl -u vouchd", err)}}
	}
	level := levelOK
	if st.Node.State == workloadapi.NodeNotAppraised {
		level = levelNote
	}
	fs := []finding{{"node", level, nodeLine(st.Node)}}
	if len(st.Problems) == 0 {
		return append(fs, finding{"daemon", levelOK, fmt.Sprintf("serves %d entries of %s", st.Entries.Count, st.TrustDomain)})
	}
	for _, p := range st.Problems {
		fs = append(fs, finding{"daemon", levelProblem, p})
	}
	return fs
}
