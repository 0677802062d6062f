package sandbox

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vouchd/vouchd/systemd"
)

// DropIn returns the drop-in that puts a service into a sandbox: vouch starts its command with
// the credentials that it may use. Each line is one of systemd.exec(5) or systemd.service(5).
func DropIn(unit *systemd.Unit, vouch string, proxies []string) (string, error) {
	s := unit.Service
	switch {
	case s == nil:
		return "", fmt.Errorf("unit %s is not a service", unit.Name)
	case len(s.ExecStart) != 1:
		return "", fmt.Errorf("unit %s has %d commands; a sandbox is for one", unit.Name, len(s.ExecStart))
	case s.Type == "forking":
		return "", fmt.Errorf("unit %s leaves its main process (Type=forking), which would end the sandbox; have it stay in the foreground", unit.Name)
	case len(s.ExecStart[0].Args) > 1 && s.ExecStart[0].Args[1] == "exec" && s.ExecStart[0].Path == vouch:
		return "", fmt.Errorf("unit %s is started by vouch exec already; remove its drop-in first", unit.Name)
	}
	command := []string{vouch, "exec", "--sandbox"}
	if len(proxies) > 0 {
		command = append(command, "--proxy", strings.Join(proxies, ","))
	}
	command = append(command, "--", s.ExecStart[0].Path)
	if len(s.ExecStart[0].Args) > 1 {
		command = append(command, s.ExecStart[0].Args[1:]...)
	}
	words := make([]string, len(command))
	for i, w := range command {
		word, err := quote(w)
		if err != nil {
			return "", fmt.Errorf("unit %s: argument %q: %w", unit.Name, w, err)
		}
		words[i] = word
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Made by vouch sandbox unit %s: the service reaches nothing but what vouchd's proxy\n# lets it call. Make it again when ExecStart= of the unit changes.\n[Service]\n", unit.Name)
	if s.Type != "simple" && s.Type != "exec" && s.Type != "oneshot" {
		fmt.Fprintf(&b, "# It was %s, for which the command would need a Unix socket.\nType=exec\n", s.Type)
	}
	fmt.Fprintf(&b, "ExecStart=\nExecStart=%s\n", strings.Join(words, " "))
	b.WriteString(unitSettings)
	return b.String(), nil
}

// unitSettings are those of every unit in a sandbox; [systemd.Transient] has the same for
// vouch run.
const unitSettings = `
# Nothing but lo. The capabilities are for vouch to prepare it; the command has none.
PrivateNetwork=yes
AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE
CapabilityBoundingSet=
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE
NoNewPrivileges=yes
RestrictAddressFamilies=
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET

# Of /run there is what vouch asks the daemon by. The command can make no Unix socket.
TemporaryFileSystem=/run:mode=755 /run/vouch:mode=1777
BindReadOnlyPaths=/run/vouchd ` + systemd.SandboxResolver + `:/etc/resolv.conf

PrivateTmp=yes
PrivateDevices=yes
ProtectProc=invisible
ProtectKernelTunables=yes
`

// quote writes a word for ExecStart=: nothing in it is expanded.
func quote(word string) (string, error) {
	if strings.ContainsAny(word, "\n\x00") {
		return "", errors.New("a unit file cannot hold a newline")
	}
	word = strings.NewReplacer("%", "%%", "$", "$$").Replace(word)
	if word != "" && !strings.ContainsAny(word, " \t\"'\\;") {
		return word, nil
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(word) + `"`, nil
}
