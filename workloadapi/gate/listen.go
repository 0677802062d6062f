package gate

import (
	"fmt"
	"io/fs"
	"net"
)

// Listen returns the daemon's sockets: those that systemd has passed under the
// names "agent" and "admin", else ones made at the given paths. To the agent
// socket everybody may connect, to the admin socket the daemon's user alone.
// A socket that systemd opened elsewhere than at its path is an error, since
// readers of the configuration would look for it there.
func Listen(passed map[string]*net.UnixListener, agentPath, adminPath string) (agent, admin *net.UnixListener, err error) {
	if agent, err = listenOr(passed["agent"], "agent_socket", agentPath, 0o666); err != nil {
		return nil, nil, err
	}
	if admin, err = listenOr(passed["admin"], "admin_socket", adminPath, 0o600); err != nil {
		agent.Close()
		return nil, nil, err
	}
	return agent, admin, nil
}

// ListenUnits returns the socket over which systemd loads credentials: the one that systemd has
// passed, else one made at the path. Root alone may connect: PID 1 is.
func ListenUnits(passed *net.UnixListener, path string) (*net.UnixListener, error) {
	return listenOr(passed, "systemd_socket", path, 0o600)
}

func listenOr(passed *net.UnixListener, key, path string, mode fs.FileMode) (*net.UnixListener, error) {
	if passed == nil {
		return ListenAt(path, mode)
	}
	if network := passed.Addr().Network(); network != "unix" {
		passed.Close()
		return nil, fmt.Errorf("systemd passes a socket for %s of type %s; use ListenStream", key, network)
	}
	if at := passed.Addr().String(); at != path {
		passed.Close()
		return nil, fmt.Errorf("systemd passes a socket at %s and %s is %s; give the socket unit's ListenStream and the configuration the same path", at, key, path)
	}
	return passed, adopt(passed)
}
