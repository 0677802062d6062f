package file

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// maxInside bounds the directories that are open on the way to one file.
const maxInside = 128

// OpenIn finds an absolute path as a process does whose root directory is given,
// links included, and returns it opened for nothing but looking at it (O_PATH).
// openat2(2) would do that, but RestrictSUIDSGID= takes it from the daemon.
func OpenIn(root int, path string) (fd int, err error) {
	way := []int{} // the directories from root to where the walk is, without root
	defer func() {
		for _, fd := range way {
			unix.Close(fd)
		}
	}()
	leave := func(n int) {
		for ; n > 0 && len(way) > 0; n-- {
			unix.Close(way[len(way)-1])
			way = way[:len(way)-1]
		}
	}
	rest := strings.Split(path, "/")
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			leave(1) // what is above root is root
			continue
		}
		if len(way) == maxInside {
			return -1, fmt.Errorf("path %s is deeper than %d directories", path, maxInside)
		}
		at := root
		if len(way) > 0 {
			at = way[len(way)-1]
		}
		next, err := unix.Openat(at, part, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, err
		}
		way = append(way, next)
		target, err := linkOf(next)
		if err != nil {
			return -1, err
		}
		if target == "" {
			continue
		}
		if links++; links > maxLinks {
			return -1, fmt.Errorf("path %s leads through more than %d symbolic links", path, maxLinks)
		}
		if leave(1); target[0] == '/' {
			leave(len(way))
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	if len(way) == 0 {
		return -1, fmt.Errorf("path %s leads to the root directory", path)
	}
	fd = way[len(way)-1]
	way = way[:len(way)-1]
	return fd, nil
}

// linkOf returns the target of a symbolic link that was opened as such, and ""
// for everything else.
func linkOf(fd int) (target string, err error) {
	var b [unix.PathMax]byte
	n, err := unix.Readlinkat(fd, "", b[:])
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) { // no link
		return "", nil
	}
	if err == nil && n == len(b) {
		err = unix.ENAMETOOLONG
	}
	return string(b[:n]), err
}
