//go:build clients

package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/proxytest"
)

// A caller is a host whose credentials programs use by way of the proxy.
type caller struct {
	*proxytest.Host
	home string
}

func newCaller(t *testing.T) *caller {
	t.Helper()
	h := &caller{Host: proxytest.New(t, "websocket: true", `environment: [{name: API_URL, value: "{{url}}"}, {name: API_KEY, value: "{{handle}}"}]`)}
	h.home = h.Path("home")
	must(t, os.Mkdir(h.home, 0o700))
	return h
}

// start starts the daemon, with these credentials beside "api": keys of their proxy blocks
// by name.
func (h *caller) start(of map[string][]string) {
	h.T.Helper()
	names := []string{"api"}
	for name, more := range of {
		names = append(names, name)
		h.Write("credentials.d/"+name+".yaml", h.Definition(name, more...))
	}
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"unix:uid:%d\"], credentials: [%s]}\n", os.Getuid(), strings.Join(names, ", ")))
	h.Start()
}

// try runs a program in the home directory.
func (h *caller) try(args ...string) (string, error) {
	h.T.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = h.home
	cmd.Env = append(os.Environ(), "VOUCHD_CONFIG="+h.Path("vouchd.yaml"), "SPIFFE_ENDPOINT_SOCKET=unix://"+h.Path("agent.sock"), "HOME="+h.home, "NO_COLOR=1",
		"GIT_TERMINAL_PROMPT=0", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.org", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.org")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// run runs one that succeeds.
func (h *caller) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := h.try(args...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// by returns the arguments that run a program with a credential's proxy.
func (h *caller) by(credential string, args ...string) []string {
	h.T.Helper()
	return append([]string{daemontest.Program(h.T, "vouch"), "exec", "--proxy", credential, "--"}, args...)
}
