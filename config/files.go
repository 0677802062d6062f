package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// A File is a configuration file as it was read.
type File struct {
	Path string
	Data []byte
}

const (
	// maxFiles bounds the configuration files of one directory.
	maxFiles = 10_000
	// maxDirLen bounds the bytes that are read from one directory's files.
	maxDirLen = 64 << 20
	// attempts is how often a directory is read again because a file vanished
	// between being listed and being opened.
	attempts = 5
)

// ReadFile reads one configuration file. It must be a regular file of at most
// [MaxFileLen] bytes; symbolic links are followed. The file and every directory and
// link on the way to it must belong to root or the process's own user, and nobody
// else may be able to write to them: anyone who can edit the configuration can grant
// themselves identities. A file that another process has open for writing is an error
// until that process has closed it.
func ReadFile(path string) ([]byte, error) {
	return readFile(path, guarding|whole)
}

// ReadDir reads the *.yaml files of a directory in the order of their names, under the
// rules of [ReadFile]. Hidden files and all other names are ignored, except those
// that were plainly meant to be read (*.yml, *.json, and the same in other cases):
// they are a problem. A missing directory has no files. AnyOwner omits the check of
// who may write, for a working copy that no daemon uses.
//
// The error is of type [Errors] and holds the problems of all files; the files that
// could be read are returned with it.
func ReadDir(dir string, anyOwner bool) ([]File, error) {
	for attempt := 1; ; attempt++ {
		files, vanished, err := readDir(dir, !anyOwner)
		if !vanished || attempt == attempts {
			return files, err
		}
	}
}

func readDir(dir string, guard bool) (files []File, vanished bool, err error) {
	if guard {
		if err := guarded(dir); err != nil {
			return nil, false, Errors{problemOf(dir, err)}
		}
	}
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, Errors{problemOf(dir, err)}
	}
	var problems Errors
	var how reading
	if guard {
		how = guarding | whole
	}
	total := 0
	for _, entry := range names {
		path := filepath.Join(dir, entry.Name())
		switch kind(entry.Name()) {
		case ignored:
			continue
		case misnamed:
			problems.Add(Pos{File: path}, "is not read, since its name does not end in .yaml; rename it to end in .yaml, or in .disabled")
			continue
		}
		data, err := readFile(path, how)
		vanished = vanished || errors.Is(err, fs.ErrNotExist)
		if err != nil {
			problems = append(problems, problemOf(path, err))
			continue
		}
		files = append(files, File{path, data})
		if total += len(data); total > maxDirLen || len(files) > maxFiles {
			problems.Add(Pos{File: dir}, "has more than %d files or %d MiB; move some away", maxFiles, maxDirLen>>20)
			break
		}
	}
	return files, vanished, problems.Err()
}

// problemOf gives an error of the operating system its place.
func problemOf(path string, err error) *Error {
	if problem, ok := errors.AsType[*Error](err); ok {
		return problem
	}
	if cause, ok := errors.AsType[*fs.PathError](err); ok {
		err = cause.Err
	}
	return &Error{Pos: Pos{File: path}, Msg: fmt.Sprintf("cannot be read: %v; fix it or move it away", err)}
}

type nameKind int

const (
	ignored nameKind = iota
	wanted
	misnamed
)

func kind(name string) nameKind {
	switch {
	case strings.HasPrefix(name, "."): // editors' files, and ..data of Kubernetes
		return ignored
	case strings.HasSuffix(name, ".yaml"):
		return wanted
	}
	switch strings.ToLower(filepath.Ext(name)) {
	case ".yaml", ".yml", ".json":
		return misnamed
	}
	return ignored
}

// openFile opens a file for reading; a named pipe does not hold it up.
func openFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// A reading says what a file is held to.
type reading int

const (
	guarding reading = 1 << iota // nobody else may write to it
	whole                        // nobody is writing it
)

// readFile reads what it has opened and checked, never a path twice.
func readFile(path string, how reading) ([]byte, error) {
	if how&guarding != 0 {
		if err := guarded(path); err != nil {
			return nil, err
		}
	}
	f, err := openFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading configuration: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading configuration: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, &Error{Pos: Pos{File: path}, Msg: "is not a regular file; replace it, or rename it to end in .disabled"}
	}
	if how&guarding != 0 {
		if err := writableByOthers(path, info); err != nil {
			return nil, err
		}
	}
	if how&whole != 0 {
		release, err := holdWhole(f)
		if err != nil {
			return nil, &Error{Pos: Pos{File: path}, Msg: err.Error()}
		}
		defer release()
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFileLen+1))
	if err != nil {
		return nil, fmt.Errorf("reading configuration: %w", err)
	}
	if len(data) > MaxFileLen {
		return nil, &Error{Pos: Pos{File: path}, Msg: fmt.Sprintf("is larger than %d bytes; split it", MaxFileLen)}
	}
	return data, nil
}
