package process

import (
	"context"
	"errors"
	"fmt"
)

// Invocation returns the ID of the invocation of its unit (systemd.exec(5)) that
// an attested process belongs to. A process that its unit's last stop has left
// behind belongs to none, and neither does one of a login session or of a
// user's own units. It returns [ErrPeerGone] if the process has exited.
func (a *Attester) Invocation(ctx context.Context, p *Peer, at *Attested) (string, error) {
	switch {
	case a.manager == nil:
		return "", errors.New("systemd is not PID 1, so that no process is in a unit")
	case at.Unit == "":
		return "", fmt.Errorf("process %d is in no system unit; start it as a service", at.PID)
	case isLogin(at.Unit):
		return "", fmt.Errorf("process %d is in %s, a login; start it as a system service", at.PID, at.Unit)
	}
	ctx, cancel := context.WithTimeout(ctx, unitTimeout)
	defer cancel()
	u, err := a.manager.Unit(ctx, at.Unit)
	if err != nil {
		return "", err
	}
	if main := u.Service != nil && u.Service.MainPID == at.PID; !main && u.Started.After(startTime(at.StartTime).Add(startDelay)) {
		return "", fmt.Errorf("process %d is left over from an earlier start of %s", at.PID, at.Unit)
	}
	// The manager has answered about a PID, which is the peer's while that lives.
	return u.InvocationID, p.Alive()
}
