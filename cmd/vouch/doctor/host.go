package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/programs"
	"github.com/vouchd/vouchd/systemd"
)

// An account is who the daemon runs as.
type account struct {
	name string
	uid  uint32
	gids []uint32
}

// daemonAccount is the packages' account if it exists, else the current user.
func daemonAccount() account {
	u, err := user.Lookup("vouchd")
	if err != nil {
		if u, err = user.Current(); err != nil {
			return account{name: "this user", uid: uint32(os.Geteuid()), gids: []uint32{uint32(os.Getegid())}}
		}
	}
	a := account{name: u.Username}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32)
	a.uid = uint32(uid)
	groups, err := u.GroupIds()
	if err != nil {
		groups = []string{u.Gid}
	}
	for _, g := range groups {
		if gid, err := strconv.ParseUint(g, 10, 32); err == nil {
			a.gids = append(a.gids, uint32(gid))
		}
	}
	return a
}

// mayReadWrite reports whether a file's mode lets the account read and write it.
func (a account) mayReadWrite(st *syscall.Stat_t) bool {
	switch {
	case a.uid == 0:
		return true
	case st.Uid == a.uid:
		return st.Mode&0o600 == 0o600
	case slices.Contains(a.gids, st.Gid):
		return st.Mode&0o060 == 0o060
	}
	return st.Mode&0o006 == 0o006
}

// tpmFinding looks at the TPM's device. class is where the kernel describes TPMs.
func tpmFinding(address, class string, daemon account) Finding {
	path, software := strings.CutPrefix(address, "unix:")
	info, err := os.Stat(path)
	version, versionErr := os.ReadFile(filepath.Join(class, "tpm0", "tpm_version_major"))
	old := versionErr == nil && strings.TrimSpace(string(version)) != "2"
	switch {
	case old && !software:
		return Finding{"TPM", Problem, "the machine's TPM is version 1.2; switch the firmware to TPM 2.0 if it offers that"}
	case errors.Is(err, fs.ErrNotExist) && software:
		return Finding{"TPM", Problem, path + " is missing; start swtpm with this socket"}
	case errors.Is(err, fs.ErrNotExist):
		return Finding{"TPM", Problem, path + " is missing; enable the TPM 2.0 in the firmware's setup (fTPM, PTT), or the virtual machine's vTPM"}
	case err != nil:
		return Finding{"TPM", Problem, err.Error()}
	case software:
		return Finding{"TPM", Note, path + " is a software TPM: fine for a trial, but it proves nothing about the machine"}
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && !daemon.mayReadWrite(st) {
		return Finding{"TPM", Problem, fmt.Sprintf("%[2]s cannot open %[1]s (mode %04[3]o, user %[4]d, group %[5]d); give the device to the group tss, as tpm-udev or tpm2-tss does, and add %[2]s to that group",
			path, daemon.name, st.Mode&0o777, st.Uid, st.Gid)}
	}
	return Finding{"TPM", OK, path}
}

// soPeerPIDFD is SO_PEERPIDFD of Linux 6.5.
const soPeerPIDFD = 77

func examinePeerPIDFD() Finding {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Finding{"kernel", Problem, err.Error()}
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	fd, err := unix.GetsockoptInt(fds[0], unix.SOL_SOCKET, soPeerPIDFD)
	if err == nil {
		unix.Close(fd)
	}
	return peerPIDFDFinding(err)
}

// peerPIDFDFinding judges what the kernel answered when asked for a peer's pidfd.
func peerPIDFDFinding(err error) Finding {
	switch {
	case errors.Is(err, unix.ENOPROTOOPT):
		return Finding{"kernel", Note, "it has no SO_PEERPIDFD (Linux 6.5); peers are pinned by process ID, start time and the sender of each message instead"}
	case err != nil:
		return Finding{"kernel", Note, fmt.Sprintf("asking for SO_PEERPIDFD: %v; peers are pinned by process ID, start time and the sender of each message instead", err)}
	}
	return Finding{"kernel", OK, "peers are pinned by SO_PEERPIDFD"}
}

func examineCgroups() Finding {
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil {
		return Finding{"control groups", Problem, fmt.Sprintf("/sys/fs/cgroup: %v; mount the cgroup2 file system there", err)}
	}
	return cgroupFinding(st.Type)
}

// cgroupFinding judges the type of the file system at /sys/fs/cgroup.
func cgroupFinding(kind int64) Finding {
	if kind == unix.CGROUP2_SUPER_MAGIC {
		return Finding{"control groups", OK, "version 2"}
	}
	return Finding{"control groups", Note, "version 1 or hybrid; cgroup selectors use systemd's hierarchy"}
}

func examineSystemd() Finding {
	if !systemd.IsManager() {
		return Finding{"systemd", Note, "it is not PID 1, so systemd and script selectors and vouch run are unavailable"}
	}
	return Finding{"systemd", OK, "it is PID 1"}
}

// examinePrograms checks that vouch run has programs to start and a socket to ask.
// It does not connect, which would start the service.
func examinePrograms(c *config.Config) Finding {
	defined, err := programs.Load(c.ProgramsDir, false)
	switch {
	case err != nil:
		return Finding{"programs", Problem, err.Error()}
	case len(defined) == 0:
		return Finding{"programs", OK, "none in " + c.ProgramsDir + "; vouch run has nothing to start"}
	case !systemd.IsManager():
		return Finding{"programs", Note, fmt.Sprintf("%d in %s, but vouch run cannot start them without systemd as PID 1", len(defined), c.ProgramsDir)}
	}
	if info, err := os.Stat(c.ProgramsSocket); err != nil || info.Mode().Type() != fs.ModeSocket {
		return Finding{"programs", Problem, fmt.Sprintf("%d in %s, but vouch run finds no socket at %s; run: systemctl enable --now vouchd-programs.path", len(defined), c.ProgramsDir, c.ProgramsSocket)}
	}
	return Finding{"programs", OK, fmt.Sprintf("%d in %s", len(defined), c.ProgramsDir)}
}

func examineClock() Finding {
	var installed time.Time
	if program, err := os.Executable(); err == nil {
		if info, err := os.Stat(program); err == nil {
			installed = info.ModTime()
		}
	}
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	return clockFinding(time.Now(), installed, err == nil && state != unix.TIME_ERROR)
}

// clockFinding judges the clock: certificates that are not valid yet, or expired long
// ago, look like attacks. made is when this program was built.
func clockFinding(now, made time.Time, synchronised bool) Finding {
	switch {
	case now.Before(made.Add(-24 * time.Hour)):
		return Finding{"clock", Problem, fmt.Sprintf("it says %s, but this program was built %s; set it, or other machines will reject this host's identities", now.UTC().Format(time.DateOnly), made.UTC().Format(time.DateOnly))}
	case !synchronised:
		return Finding{"clock", Note, "it is not synchronised; run systemd-timesyncd or chrony, since identities live for minutes"}
	}
	return Finding{"clock", OK, "it is synchronised"}
}

func examineSocket(ctx context.Context, path string) Finding {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
		return Finding{"agent socket", OK, path + " accepts connections"}
	}
	way := "start the daemon with: systemctl start vouchd"
	switch {
	case errors.Is(err, fs.ErrPermission):
		way = "make its directory 0755 and the socket 0666: the kernel identifies callers"
	case errors.Is(err, unix.ECONNREFUSED):
		way = "nothing listens on it: it is left over from a daemon that was killed; " + way
	case errors.Is(err, unix.ENOTSOCK), errors.Is(err, unix.EPROTOTYPE):
		way = "it is not the daemon's socket; move it away, and " + way
	}
	return Finding{"agent socket", Problem, fmt.Sprintf("%v; %s", err, way)}
}
