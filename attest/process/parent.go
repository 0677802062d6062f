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
	before, err := a.observe(p, dir, buf)
	if err != nil {
		return parent{}, err
	}
	ns, err := a.host.userNS(dir, before.userNS)
	if err != nil {
		return parent{}, err
	}
	path, err := dir.programPath()
	if err != nil {
		return parent{}, err
	}
	running, err := a.program(ctx, p, dir, buf, before, ns, path)
	if err != nil {
		return parent{}, err
	}
	unit, _, _ := a.host.unit(before.cgroup)
	after, err := a.observe(p, dir, buf)
	if err == nil && !before.equal(after) {
		err = ErrChanged
	}
	if err != nil {
		return parent{}, err
	}
	return parent{running.sha256, unit}, p.Alive()
}
