package proxy

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/database"
	"github.com/vouchd/vouchd/workloadapi/gate"
)

// sockets are those at which agents connect to databases, one for each definition. The
// daemon makes them, in a directory where nobody else may, and keeps them while the process
// that accepts on them is replaced. The methods are safe for concurrent use.
type sockets struct {
	dir string // that has them, below one for each protocol

	mu     sync.Mutex // guards the fields below
	of     map[string]*socket
	failed map[string]error // why a definition has none
}

type socket struct {
	*net.UnixListener
	path string
}

// follow makes the sockets of definitions that have come, and removes those of others.
func (s *sockets) follow(defs []*credential.Definition) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := make(map[string]string)
	for _, d := range defs {
		if d.Database != nil {
			wanted[d.Name] = database.SocketOf(s.dir, d.Database.Protocol, d.Name)
		}
	}
	for name, l := range s.of {
		if wanted[name] != l.path {
			l.remove()
			delete(s.of, name)
		}
	}
	s.failed = make(map[string]error)
	for name, path := range wanted {
		if s.of[name] != nil {
			continue
		}
		l, err := listen(path)
		if err != nil {
			s.failed[name] = err
			continue
		}
		if s.of == nil {
			s.of = make(map[string]*socket)
		}
		s.of[name] = l
	}
}

// get returns the socket of a definition, or nil.
func (s *sockets) get(name string) *socket {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.of[name]
}

// problems says which databases nobody can connect to.
func (s *sockets) problems() (list []error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, err := range s.failed {
		list = append(list, fmt.Errorf("no connections are made with %s: %w", name, err))
	}
	slices.SortFunc(list, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return list
}

func (s *sockets) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.of {
		l.remove()
	}
	s.of = nil
}

// listen makes a socket that anybody may connect to. One of this user's that is there is
// from a daemon that crashed: only one has the state directory.
func listen(path string) (*socket, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	for _, d := range []string{filepath.Dir(dir), dir} { // whatever the umask
		info, err := os.Stat(d)
		if err != nil {
			return nil, err
		}
		if own := int(info.Sys().(*syscall.Stat_t).Uid) == os.Geteuid(); own && info.Mode().Perm()&0o055 == 0 {
			if err := os.Chmod(d, 0o755); err != nil {
				return nil, err
			}
		}
	}
	info, err := os.Lstat(path)
	if err == nil && info.Mode().Type() == fs.ModeSocket && int(info.Sys().(*syscall.Stat_t).Uid) == os.Geteuid() {
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := gate.ListenAt(path, 0o666)
	if err != nil {
		return nil, err
	}
	return &socket{l, path}, nil
}

// remove removes the socket, and its directory if that is its own.
func (s *socket) remove() {
	s.Close() // which removes it
	if filepath.Base(s.path) == ".s.PGSQL.5432" {
		os.Remove(filepath.Dir(s.path)) // it may have something else in it
	}
}
