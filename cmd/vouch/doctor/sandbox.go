package doctor

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/cmd/vouch/sandbox"
)

// sandboxLimit is how long a sandbox that is tried may take.
const sandboxLimit = 10 * time.Second

// examineSandbox tries what vouch exec --sandbox does.
func examineSandbox(ctx context.Context) Finding {
	ctx, cancel := context.WithTimeout(ctx, sandboxLimit)
	defer cancel()
	return sandboxFinding(sandbox.Check(ctx), sandbox.Lacks(), os.Geteuid() == 0, func(name string) string {
		b, _ := os.ReadFile("/proc/sys/" + name)
		return strings.TrimSpace(string(b))
	})
}

// sandboxFinding judges what came of trying a sandbox, by the kernel's settings. Root is not
// held to what users are.
func sandboxFinding(err error, lacks string, root bool, setting func(name string) string) Finding {
	forbidden := func(text string) Finding {
		if err == nil {
			text = "root can make one, but " + text
		}
		return Finding{"sandbox", Note, text}
	}
	users := err != nil || root
	switch {
	case users && setting("user/max_user_namespaces") == "0":
		return forbidden("user.max_user_namespaces is 0, so users cannot make namespaces for vouch exec --sandbox; allow it with: sysctl -w user.max_user_namespaces=10000")
	case users && setting("kernel/unprivileged_userns_clone") == "0":
		return forbidden("kernel.unprivileged_userns_clone is 0, so users cannot make namespaces for vouch exec --sandbox; allow it with: sysctl -w kernel.unprivileged_userns_clone=1")
	case users && setting("kernel/apparmor_restrict_unprivileged_userns") == "1" && (err != nil || !confined()):
		return forbidden("AppArmor keeps users from making namespaces for vouch exec --sandbox (kernel.apparmor_restrict_unprivileged_userns); allow it for vouch with: install -m 644 /usr/share/vouchd/apparmor/vouch /etc/apparmor.d/vouch && apparmor_parser --replace /etc/apparmor.d/vouch")
	case err == nil && lacks != "":
		return Finding{"sandbox", Note, "vouch exec --sandbox works; " + lacks}
	case err == nil:
		return Finding{"sandbox", OK, "vouch exec --sandbox works"}
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOSYS):
		return forbidden(err.Error() + "; in a container, its runtime has to allow clone with CLONE_NEWUSER, and mounts (its seccomp and AppArmor profiles); a chroot cannot have one at all")
	case errors.Is(err, unix.ENOSPC):
		return forbidden(err.Error() + "; user.max_user_namespaces is used up, or namespaces are nested too deep")
	}
	return forbidden(err.Error())
}

// confined reports whether AppArmor has loaded the packages' profile of vouch.
func confined() bool {
	b, err := os.ReadFile("/proc/self/attr/current")
	return err == nil && strings.HasPrefix(string(b), "vouch ")
}
