package process

import (
	"context"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	nameLife    = 10 * time.Second // how long a changed name may be given still
	nameTimeout = 2 * time.Second  // for a user database on the network
	maxNames    = 4096
)

// names are the names of users and groups, kept for a short time, as looking
// one up may read a long file or ask a server.
type names struct {
	users, groups nameCache
}

func newNames() *names {
	return &names{
		users: nameCache{lookUp: func(id string) (string, error) {
			u, err := user.LookupId(id)
			if err != nil {
				return "", err
			}
			return u.Username, nil
		}},
		groups: nameCache{lookUp: func(id string) (string, error) {
			g, err := user.LookupGroupId(id)
			if err != nil {
				return "", err
			}
			return g.Name, nil
		}},
	}
}

// user returns the name of a user, or "" if there is none to be had.
func (n *names) user(ctx context.Context, uid uint32) string { return n.users.get(ctx, uid) }

// group returns the name of a group, or "" if there is none to be had.
func (n *names) group(ctx context.Context, gid uint32) string { return n.groups.get(ctx, gid) }

type nameCache struct {
	lookUp func(id string) (string, error)

	mu    sync.Mutex // guards known and what it holds
	known map[uint32]*knownName
}

type knownName struct {
	done    chan struct{} // closed once name is set
	name    string        // "" if there is none
	expires time.Time
}

func (c *nameCache) get(ctx context.Context, id uint32) string {
	k := c.entry(id, time.Now())
	select {
	case <-k.done: // most likely, and without a timer
		return k.name
	default:
	}
	timeout := time.NewTimer(nameTimeout)
	defer timeout.Stop()
	select {
	case <-k.done:
		return k.name
	case <-ctx.Done():
	case <-timeout.C:
	}
	return ""
}

// entry returns what is known of the ID, and looks it up where that is nothing
// or too old: one look-up at a time for each ID.
func (c *nameCache) entry(id uint32, now time.Time) *knownName {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.known[id]; k != nil && now.Before(k.expires) {
		return k
	}
	if len(c.known) >= maxNames || c.known == nil {
		c.known = make(map[uint32]*knownName)
	}
	k := &knownName{done: make(chan struct{}), expires: now.Add(nameLife)}
	c.known[id] = k
	go func() {
		defer close(k.done)
		name, err := c.lookUp(strconv.FormatUint(uint64(id), 10))
		if err == nil && !strings.ContainsAny(name, ":\n\x00") {
			k.name = name
		}
	}()
	return k
}
