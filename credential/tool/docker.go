package tool

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/vouchd/vouchd/credential"
)

// Docker's helpers answer what is wrong on standard output, and some of it in
// words that Docker looks for (docker/docker-credential-helpers, credentials).
var (
	// ErrDockerNotFound lets Docker go on without a login.
	ErrDockerNotFound = errors.New("credentials not found in native keychain")
	// ErrDockerServer means that Docker named no server.
	ErrDockerServer = errors.New("no credentials server URL")
)

// defaultDockerUsername goes with tokens of registries that do not look at the
// name. It must not be "<token>", which means an identity token to Docker.
const defaultDockerUsername = "vouch"

// ParseDocker reads the registry that Docker asks for, in its own words.
func ParseDocker(r io.Reader) (server string, err error) {
	const most = 4096
	b, err := readAll(r, most)
	if err != nil {
		return "", err
	}
	server = strings.TrimRight(string(b), "\r\n")
	switch {
	case server == "":
		return "", ErrDockerServer
	case !oneLine([]byte(server)):
		return "", errors.New("standard input is not one line")
	}
	return server, nil
}

// DockerTarget is what a server that Docker names stands for.
func DockerTarget(server string) (credential.Target, error) {
	return credential.NewTarget(credential.Docker, server)
}

// AnswerDocker writes a login for a server.
func AnswerDocker(w io.Writer, server string, l Login) error {
	if l.Username == "" {
		l.Username = defaultDockerUsername
	}
	if !utf8.Valid(l.Secret) {
		return errText
	}
	b, err := json.Marshal(struct{ ServerURL, Username, Secret string }{server, l.Username, string(l.Secret)})
	if err != nil {
		return fmt.Errorf("answering Docker: %w", err)
	}
	defer clear(b)
	_, err = w.Write(append(b, '\n'))
	return err
}

// ListDocker writes the registries that logins can be had for, and with which
// name, as far as that is known before one is.
func ListDocker(w io.Writer, usernames map[string]string) error {
	list := make(map[string]string)
	for registry, username := range usernames {
		if registry == "docker.io" {
			registry = "https://index.docker.io/v1/" // as Docker looks for it
		}
		if username == "" {
			username = defaultDockerUsername
		}
		list[registry] = username
	}
	return json.NewEncoder(w).Encode(list)
}
