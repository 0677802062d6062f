package process

import "context"

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
