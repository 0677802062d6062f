package inventory

import (
	"bufio"
	"cmp"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

// everybodys are gone over whoever asks.
var everybodys = []string{
	"/etc", "/opt", "/srv", "/usr/local",
	"/run/systemd/system", "/usr/lib/systemd/system", "/usr/lib/systemd/user",
}

// defaultDirs are gone over if none is named. Those that are not there are left out.
func defaultDirs() (dirs []string) {
	list := slices.Clone(everybodys)
	if os.Geteuid() == 0 {
		list = append(append(list, "/root", "/home"), homes("/etc/passwd")...)
	}
	for _, own := range []func() (string, error){os.UserHomeDir, os.Getwd} {
		if d, err := own(); err == nil && d != "/" {
			list = append(list, d)
		}
	}
	for _, d := range list {
		if info, err := os.Stat(d); err == nil && info.IsDir() {
			dirs = append(dirs, d)
		}
	}
	return dirs
}

// notHomes are what services have in passwd for want of a home.
var notHomes = []string{"/", "/bin", "/sbin", "/dev", "/usr", "/usr/bin", "/usr/sbin", "/run", "/var", "/var/lib", "/var/run", "/proc", "/sys", "/tmp", "/nonexistent"}

// homes are the home directories of a file of users.
func homes(passwd string) (list []string) {
	f, err := os.Open(passwd)
	if err != nil {
		return nil // /root and /home remain
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) == 7 && strings.HasPrefix(fields[5], "/") && !slices.Contains(notHomes, filepath.Clean(fields[5])) {
			list = append(list, filepath.Clean(fields[5]))
		}
	}
	return list
}

// defaultKey is where the key of fingerprints is: with the daemon's state for root, if
// there is a daemon, else with the user's own.
func defaultKey(o *cli.Options) (string, error) {
	const name = "inventory.key"
	if os.Geteuid() == 0 {
		state := "/var/lib/vouchd"
		if c, err := o.Load(); err == nil {
			state = c.StateDir
		}
		if info, err := os.Lstat(state); err == nil && info.IsDir() {
			return filepath.Join(state, name), nil
		}
	}
	home, err := os.UserHomeDir()
	if state := os.Getenv("XDG_STATE_HOME"); err == nil || state != "" {
		return filepath.Join(cmp.Or(state, filepath.Join(home, ".local", "state")), "vouch", name), nil
	}
	return "", errors.New("there is no home directory to keep the key of fingerprints in; name a file with --key")
}
