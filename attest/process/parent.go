package process

import (
	"context"
	"fmt"
)

// A parent is what is attested of the process that a process has as its
// parent. It may not be the one that started it: a parent can exec another
// program after it has forked, and an orphan is given to another process.
type parent struct {
	sha256 string
	unit   string
}

// parent attests the process's parent. The caller checks afterwards that it is
// still the parent: until then, its PID cannot have been reused.
func (a *Attester) parent(ctx context.Context, pid int, buf *buffer) (parent, error) {
	p, err := Pin(pid)
	if err != nil {
		return parent{}, err
	}
	defer p.Close()
	dir, err := openDir(pid)
	if err != nil {
		return parent{}, err
	}
	defer dir.close()
	var o observation
	if err := a.observeProgram(p, dir, buf, &o); err != nil {
		return parent{}, err
	}
	if o.userNS, err = namespace(int(dir), "ns/user"); err != nil {
		return parent{}, err
	}
	if o.cgroup, err = dir.cgroup(a.host.hierarchy, buf); err != nil {
		return parent{}, err
	}
	users, err := a.host.userNS(dir, o.userNS)
	if err != nil {
		return parent{}, err
	}
	path, err := dir.programPath()
	if err != nil {
		return parent{}, err
	}
	running, err := a.program(ctx, dir, buf, o, users, path)
	if err != nil {
		return parent{}, err
	}
	unit, _, _ := a.host.unit(o.cgroup)
	now, err := dir.image(buf)
	if err == nil && now != o.image {
		err = ErrChanged
	}
	if err != nil {
		return parent{}, err
	}
	return parent{running.sha256, unit}, p.Alive()
}

// An Ancestor is a process in a [Peer]'s lineage.
type Ancestor struct {
	PID       int
	StartTime uint64 // in ticks since boot
	UID, GID  uint32 // effective
}

// maxLineage bounds how many generations are looked at.
const maxLineage = 64

// Lineage returns the process and those that it descends from, the nearest first, up
// to PID 1 or 64 generations. A process whose parent has exited was given to another,
// and descends from that. A caller that means one of them pins it ([PinStarted]) and asks
// again: each is what it was when it was read, and no later.
func (p *Peer) Lineage() ([]Ancestor, error) {
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)
	var list []Ancestor
	for pid := p.pid; pid > 0 && len(list) < maxLineage; {
		a, parent, err := ancestor(pid, buf)
		if err != nil {
			return nil, p.explain("lineage", err)
		}
		if n := len(list); n > 0 && a.StartTime > list[n-1].StartTime {
			return nil, p.explain("lineage", fmt.Errorf("process %d is younger than its child: its PID was reused", pid))
		}
		list = append(list, a)
		pid = parent
	}
	return list, p.Alive()
}

func ancestor(pid int, buf *buffer) (a Ancestor, parent int, err error) {
	dir, err := openDir(pid)
	if err != nil {
		return a, 0, err
	}
	defer dir.close()
	st, err := dir.stat(buf)
	if err != nil {
		return a, 0, err
	}
	status, err := dir.status(buf)
	if err != nil {
		return a, 0, err
	}
	return Ancestor{pid, st.start, status.uid, status.gid}, status.parent, nil
}
