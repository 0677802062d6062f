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
	file, err := dir.program()
	if err != nil {
		return parent{}, err
	}
	sum, err := a.hashes.sum(ctx, file, dir.openProgram)
	if err != nil {
		return parent{}, err
	}
	cgroup, err := dir.cgroup(a.host.hierarchy, buf)
	if err != nil {
		return parent{}, err
	}
	unit, _, _ := a.host.unit(cgroup)
	again, err := dir.program()
	if err == nil && again != file {
		err = ErrChanged
	}
	if err != nil {
		return parent{}, err
	}
	return parent{sum, unit}, p.Alive()
}
