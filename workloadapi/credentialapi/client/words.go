package client

import (
	"errors"
	"regexp"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// connecting is how gRPC wraps the error of a socket that cannot be connected to, or that is
// closed before the daemon has said anything.
var connecting = regexp.MustCompile(`^(?:.*transport: Error while dialing|connection error: desc = "error reading server preface): (.*?)"?$`)

// wayOut is what to do about a socket that cannot be connected to.
func wayOut(said string) string {
	switch {
	case strings.HasSuffix(said, syscall.EACCES.Error()):
		return "; this user may not; ask this host's administrator"
	case strings.HasSuffix(said, syscall.ENOENT.Error()), strings.HasSuffix(said, syscall.ECONNREFUSED.Error()), strings.HasSuffix(said, syscall.ECONNRESET.Error()):
		return "; is vouchd running? see: systemctl status vouchd"
	}
	return ""
}

// Words returns what an error says, without gRPC's wrapping: for errors of this client, and
// of one of the SPIFFE Workload API.
func Words(err error) string {
	text := err.Error()
	of, ok := errors.AsType[interface {
		error
		GRPCStatus() *status.Status
	}](err)
	if !ok {
		return text
	}
	s := of.GRPCStatus()
	said := s.Message()
	if m := connecting.FindStringSubmatch(said); s.Code() == codes.Unavailable && m != nil {
		said = m[1] + wayOut(m[1])
	}
	if s.Code() == codes.DeadlineExceeded {
		said = noAnswer
	}
	for _, wrapped := range []string{s.Err().Error(), s.Message()} {
		if wrapped != "" && strings.Contains(text, wrapped) {
			return strings.Replace(text, wrapped, said, 1)
		}
	}
	return text
}
