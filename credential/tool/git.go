package tool

import (
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/vouchd/vouchd/credential"
)

const (
	maxGitInput = 64 << 10 // bytes
	maxGitLines = 256
	// gitState is what git keeps for the helper between get and erase, where it
	// can: the lease, so that one which a server refuses is ended.
	gitState = "vouch:lease="
)

// A GitRequest is what git asks its credential helper (git-credential(1), INPUT/
// OUTPUT FORMAT).
type GitRequest struct {
	Protocol string
	Host     string // with the port, if any
	Path     string // only with credential.useHttpPath
	Username string // that the URL names
	Lease    string // that an earlier answer was of
	CanState bool   // git keeps states
	CanAuth  bool   // git knows authtype, and with it what is ephemeral
}

// ParseGit reads a request. Attributes that are not known are skipped, as the
// protocol wants it.
func ParseGit(r io.Reader) (req GitRequest, err error) {
	b, err := readAll(r, maxGitInput)
	if err != nil {
		return req, err
	}
	lines := 0
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			break
		}
		if lines++; lines > maxGitLines {
			return GitRequest{}, fmt.Errorf("standard input has more than %d lines", maxGitLines)
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || key == "" || !oneLine([]byte(value)) {
			return GitRequest{}, fmt.Errorf("line %d of standard input is not key=value", lines) // it may hold a secret
		}
		switch key {
		case "protocol":
			req.Protocol = value
		case "host":
			req.Host = value
		case "path":
			req.Path = value
		case "username":
			req.Username = value
		case "capability[]":
			req.CanState = req.CanState || value == "state"
			req.CanAuth = req.CanAuth || value == "authtype"
		case "state[]":
			if lease, ok := strings.CutPrefix(value, gitState); ok {
				req.Lease = lease
			}
		}
	}
	return req, nil
}

// Target is what the request is for. An error means that no credential can be
// for it: it is of another protocol than git's over https.
func (r GitRequest) Target() (credential.Target, error) {
	if strings.ContainsAny(r.Host, "/?#@%\\") || strings.ContainsAny(r.Path, "?#\\") {
		return credential.Target{}, fmt.Errorf("host %.80q is not one", r.Host)
	}
	location := url.URL{Scheme: r.Protocol, Host: r.Host}
	if r.Path != "" { // as git has decoded it
		location.Path = "/" + strings.TrimLeft(r.Path, "/")
	}
	return credential.NewTarget(credential.Git, location.String())
}

// Answer writes a login, until when it is good, and the lease if git keeps it.
func (r GitRequest) Answer(w io.Writer, l Login, expires time.Time, lease string) error {
	if l.Username == "" {
		return fmt.Errorf("it has no user name; give its definition one, with the place it is for")
	}
	if !oneLine([]byte(l.Username)) || !oneLine(l.Secret) {
		return fmt.Errorf("it %w", errLine)
	}
	var b []byte
	defer func() { clear(b) }()
	if r.CanAuth {
		// So that no other helper, such as store, writes it down.
		b = append(b, "capability[]=authtype\nephemeral=1\n"...)
	}
	if r.CanState {
		b = append(b, "capability[]=state\nstate[]="+gitState+lease+"\n"...)
	}
	b = append(b, "username="+l.Username+"\npassword="...)
	b = append(b, l.Secret...)
	b = append(b, "\npassword_expiry_utc="+strconv.FormatInt(expires.Unix(), 10)+"\n"...)
	_, err := w.Write(b)
	return err
}
