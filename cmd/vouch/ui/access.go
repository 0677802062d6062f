package ui

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/cmd/vouch/loopback"
)

// access is who may look at the page: the browser that opened the link, for a while.
//
// The link has a token that works once. It is exchanged for a cookie, which is sent to paths
// below a random one alone: browsers send cookies to every port of a host, and a server of
// another user on 127.0.0.1 would get it otherwise. A session is that of one user of the
// machine, so that a stolen cookie or path is of no use to another.
type access struct {
	now         func() time.Time
	linkLife    time.Duration
	sessionLife time.Duration

	base   string   // path that the pages are below, with a slash at either end
	token  [32]byte // digest
	cookie [32]byte // the same
	opened chan string

	mu      sync.Mutex // guards the fields below
	text    string     // the token, until the link was printed
	used    bool
	expires time.Time // of the session, or of the link
	uid     uint32    // that opened it
}

const (
	cookieName = "vouch_ui"
	openPath   = "/open/"
)

func newAccess(now func() time.Time, link, session time.Duration) *access {
	text := random()
	return &access{
		now: now, linkLife: link, sessionLife: session,
		base: "/" + random()[:22] + "/", token: sha256.Sum256([]byte(text)), text: text,
		opened: make(chan string, 1), expires: now().Add(link),
	}
}

// random returns 256 random bits for a URL.
func random() string {
	b := make([]byte, 32)
	rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

// link returns the path that works once, and forgets it.
func (a *access) link() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	path := openPath + a.text
	a.text = ""
	return path
}

// open exchanges the token for a cookie. What it returns is why not.
func (a *access) open(w http.ResponseWriter, r *http.Request, token string) (refused string) {
	given := sha256.Sum256([]byte(token))
	a.mu.Lock()
	defer a.mu.Unlock()
	switch right := subtle.ConstantTimeCompare(given[:], a.token[:]) == 1; {
	case !right:
		return notTheLink
	case a.used:
		return "This link was used already. Run vouch ui again for another; if it was not you who used it, end that one first."
	case !a.now().Before(a.expires):
		return "This link is too old. Run vouch ui again for another."
	}
	value := random()
	a.used, a.cookie, a.uid, a.expires = true, sha256.Sum256([]byte(value)), peerOf(r.Context()), a.now().Add(a.sessionLife)
	http.SetCookie(w, &http.Cookie{
		Name: cookieName, Value: value, Path: a.base, // kept in memory, until the browser ends
		HttpOnly: true, SameSite: http.SameSiteStrictMode,
	})
	a.opened <- userName(a.uid)
	return ""
}

// may tells whether a request is of the session.
func (a *access) may(r *http.Request) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.used || !a.now().Before(a.expires) || peerOf(r.Context()) != a.uid || !strings.HasPrefix(r.URL.Path, a.base) {
		return false
	}
	for _, c := range r.CookiesNamed(cookieName) {
		given := sha256.Sum256([]byte(c.Value))
		if subtle.ConstantTimeCompare(given[:], a.cookie[:]) == 1 {
			return true
		}
	}
	return false
}

type peerKey struct{}

// A peer is a connection with the user at its other end.
type peer struct {
	net.Conn
	uid uint32
}

func withPeer(ctx context.Context, c net.Conn) context.Context {
	if p, ok := c.(*peer); ok {
		ctx = context.WithValue(ctx, peerKey{}, p.uid)
	}
	return ctx
}

// noUser is no user's number (user_namespaces(7) and credentials(7): -1).
const noUser = ^uint32(0)

func peerOf(ctx context.Context) uint32 {
	if uid, ok := ctx.Value(peerKey{}).(uint32); ok {
		return uid
	}
	return noUser
}

// A guard lets the connections of some users in. The kernel says whose they are.
type guard struct {
	net.Listener
	users  []uint32
	finder loopback.Finder
	told   map[string]bool
	said   io.Writer
}

// guarded lets in this user, root, and who logged in to become this user.
func guarded(l net.Listener, problems io.Writer) *guard {
	g := &guard{Listener: l, users: []uint32{uint32(os.Geteuid()), 0}, told: make(map[string]bool), said: problems}
	if uid, ok := loginUser(); ok {
		g.users = append(g.users, uid)
	}
	return g
}

// tell says once what was refused.
func (g *guard) tell(what string) {
	if len(g.told) < maxTold && !g.told[what] {
		g.told[what] = true
		fmt.Fprintf(g.said, "vouch: refused a connection %s\n", what)
	}
}

// maxTold bounds what is said of connections that were refused.
const maxTold = 100

// Accept returns the next connection that may be served. Only one goroutine calls it.
func (g *guard) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		switch uid, err := g.user(c); {
		case err != nil:
			g.tell(fmt.Sprintf("of nobody knows whom: %v", err))
		case slices.Contains(g.users, uid):
			return &peer{c, uid}, nil
		default:
			g.tell("of " + userName(uid))
		}
		c.Close()
	}
}

// user returns the user at a connection's other end.
func (g *guard) user(c net.Conn) (uint32, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return g.finder.User(c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var sockErr error
	if err := raw.Control(func(fd uintptr) { cred, sockErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if sockErr != nil {
		return 0, sockErr
	}
	return cred.Uid, nil
}

// loginUser is who logged in to this session (pam_loginuid(8)), which sudo and su do not
// change; where that is not recorded, root says by sudo's variable whom it works for.
func loginUser() (uint32, bool) {
	if b, err := os.ReadFile("/proc/self/loginuid"); err == nil {
		if n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32); err == nil && uint32(n) != noUser {
			return uint32(n), true
		}
	}
	if os.Geteuid() == 0 {
		if n, err := strconv.ParseUint(os.Getenv("SUDO_UID"), 10, 32); err == nil {
			return uint32(n), true
		}
	}
	return 0, false
}

func userName(uid uint32) string {
	if u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
		return fmt.Sprintf("%s (user %d)", u.Username, uid)
	}
	return fmt.Sprintf("user %d", uid)
}

// private makes a socket without rights for others. The mask is the process's, which makes no
// other file meanwhile.
func private(listen func() (net.Listener, error)) (net.Listener, error) {
	before := syscall.Umask(0o177)
	defer syscall.Umask(before)
	return listen()
}

// silent is for what the HTTP server says of connections that end early.
var silent = log.New(io.Discard, "", 0)
