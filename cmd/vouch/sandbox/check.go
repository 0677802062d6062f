package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// Check tries a sandbox and returns why there is none.
func Check(ctx context.Context) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	s, err := start(ctx, Options{Command: []string{"true"}, Dir: "/", Stdin: null, Stdout: null, Stderr: null})
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Release([]string{"PATH=/usr/bin:/bin"}); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { s.Close() })()
	status, err := s.Wait()
	switch {
	case err != nil:
		return err
	case status.ExitStatus() != 0:
		return errors.New("a command in a sandbox could not be executed; run: vouch exec --sandbox -- true")
	}
	return nil
}

// Lacks says what this kernel cannot keep from a command in a sandbox; "" for nothing.
func Lacks() string {
	switch version := landlockVersion(); {
	case version == 0:
		return "without Landlock (Linux 5.13) it cannot be kept from writing files"
	case version < landlockScopes:
		return fmt.Sprintf("with version %d of Landlock, and not %d (Linux 6.12), it can send signals to the other commands of a pipeline on a terminal", version, landlockScopes)
	}
	return ""
}
