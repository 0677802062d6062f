package admin

import (
	"fmt"
	"net"
	"net/http"
	"os"

	"github.com/vouchd/vouchd/attest/process"
)

// An Asker is the process that connected to the admin socket, by the kernel's
// word. The process may have passed the connection on; its user is what
// counts.
type Asker struct {
	PID      int
	UID, GID uint32
}

// A listener drops connections of other users.
type listener struct{ *net.UnixListener }

func (l listener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if p, err := process.PeerOf(c); err == nil {
			by := Asker{PID: p.PID(), UID: p.UID(), GID: p.GID()}
			p.Close()
			if by.UID == 0 || int(by.UID) == os.Geteuid() {
				return conn{c, by}, nil
			}
		}
		c.Close()
	}
}

// A conn is a connection whose remote address is who made it, which net/http
// hands to each request.
type conn struct {
	*net.UnixConn
	by Asker
}

// RemoteAddr implements [net.Conn].
func (c conn) RemoteAddr() net.Addr { return c.by }

// Network implements [net.Addr].
func (Asker) Network() string { return "unix" }

// String implements [net.Addr].
func (a Asker) String() string { return fmt.Sprintf(askerFormat, a.PID, a.UID, a.GID) }

const askerFormat = "process=%d,user=%d,group=%d"

func parseAsker(s string) (a Asker, err error) {
	_, err = fmt.Sscanf(s, askerFormat, &a.PID, &a.UID, &a.GID)
	return a, err
}

// ofAskers answers requests only if it is known who makes them.
func ofAskers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := parseAsker(r.RemoteAddr); err != nil {
			http.Error(w, "it is not known who asks", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// askerOf returns who makes a request; an Asker with the IDs of no user if that is unknown.
func askerOf(r *http.Request) Asker {
	a, err := parseAsker(r.RemoteAddr)
	if err != nil {
		return Asker{UID: ^uint32(0), GID: ^uint32(0)}
	}
	return a
}
