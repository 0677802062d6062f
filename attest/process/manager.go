package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/vouchd/vouchd/attest/process/file"
)

// maxSteps is how far from PID 1 a process of the manager's may be. systemd 252
// forks one for the unit's program and that one another, which loads
// credentials; later versions have the first of them run systemd-executor.
const maxSteps = 4

// OfManager returns an error unless the peer is the service manager itself, at
// work for a unit before it runs the unit's program: root, and a descendant of
// PID 1 of which every one on the way runs PID 1's own program or the
// systemd-executor beside it.
//
// Root can make a process that looks so, as it can have anything that the
// daemon has. Nobody else can: in a container's user namespace root is another
// user, and a container's systemd is another file.
func (a *Attester) OfManager(p *Peer) error {
	if !a.host.systemd {
		return &Error{p.pid, "service manager", errors.New("systemd is not PID 1")}
	}
	programs, err := managerPrograms()
	if err != nil {
		return p.explain("service manager", err)
	}
	before, err := ancestry(p.pid, programs)
	if err != nil {
		return p.explain("service manager", err)
	}
	// While all of them have kept their parents none of the PIDs was reused.
	after, err := ancestry(p.pid, programs)
	if err != nil {
		return p.explain("service manager", err)
	}
	if !slices.Equal(before, after) {
		return p.explain("service manager", ErrChanged)
	}
	return p.Alive()
}

// A fileKey names a file for as long as it is in use.
type fileKey struct{ dev, ino uint64 }

// managerPrograms returns the files of PID 1's program and of its helper.
func managerPrograms() (programs []fileKey, err error) {
	dir, err := openDir(1)
	if err != nil {
		return nil, err
	}
	defer dir.close()
	manager, err := dir.program()
	if err != nil {
		return nil, err
	}
	programs = append(programs, fileKey{manager.Dev, manager.Ino})
	path, err := dir.programPath()
	if err != nil {
		return nil, err
	}
	path = filepath.Join(filepath.Dir(path), "systemd-executor") // systemd 254 and later
	if info, err := os.Lstat(path); err == nil && file.OnlyRoot(info) == nil {
		executor, err := file.AtPath(path)
		if err != nil {
			return nil, err
		}
		programs = append(programs, fileKey{executor.Dev, executor.Ino})
	}
	return programs, nil
}

// A step is one process between the peer and PID 1.
type step struct {
	pid   int
	start uint64
}

// ancestry returns the processes from pid up to the child of PID 1, each of
// which is root's and runs one of the programs.
func ancestry(pid int, programs []fileKey) (steps []step, err error) {
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)
	for range maxSteps {
		next, parent, err := stepOf(pid, programs, buf)
		if err != nil {
			return nil, err
		}
		if steps = append(steps, next); parent == 1 {
			return steps, nil
		}
		pid = parent
	}
	return nil, fmt.Errorf("it is not a child of PID 1")
}

func stepOf(pid int, programs []fileKey, buf *buffer) (s step, parent int, err error) {
	dir, err := openDir(pid)
	if err != nil {
		return s, 0, err
	}
	defer dir.close()
	status, err := dir.status(buf)
	if err != nil {
		return s, 0, err
	}
	program, err := dir.program()
	if err != nil {
		return s, 0, err
	}
	st, err := dir.stat(buf)
	switch {
	case err != nil:
		return s, 0, err
	case status.uids != [4]uint32{}:
		return s, 0, fmt.Errorf("process %d is not root's", pid)
	case status.tracer != 0:
		return s, 0, fmt.Errorf("process %d is traced", pid)
	case status.parent == 0 || pid == 1:
		return s, 0, errors.New("it is not a child of PID 1")
	case !slices.Contains(programs, fileKey{program.Dev, program.Ino}):
		return s, 0, fmt.Errorf("process %d does not run systemd; if systemd was just updated: systemctl daemon-reexec", pid)
	}
	return step{pid, st.start}, status.parent, nil
}
