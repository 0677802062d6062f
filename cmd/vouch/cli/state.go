package cli

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"github.com/vouchd/vouchd/state"
)

// OpenState takes the state directory of a daemon that is stopped.
func OpenState(path, command string) (*state.Dir, error) {
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		owner := "#" + strconv.Itoa(int(st.Uid))
		if u, err := user.LookupId(strconv.Itoa(int(st.Uid))); err == nil {
			owner = u.Username
		}
		return nil, fmt.Errorf("%s belongs to the user %s; run this as that user: sudo -u '%s' %s", path, owner, owner, command)
	}
	dir, err := state.Open(path)
	if errors.Is(err, state.ErrInUse) {
		return nil, fmt.Errorf("%w; stop the daemon first, with: systemctl stop vouchd", err)
	}
	return dir, err
}
