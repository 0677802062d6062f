package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
)

func TestHangupReloads(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.StartProcess()
	must(t, h.Cmd.Process.Signal(syscall.SIGHUP)) // as soon as it serves
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	must(t, h.Cmd.Process.Signal(syscall.SIGHUP))
	eventually(t, "the new file is in force", func() bool { _, err := h.Fetch(); return err == nil })
}

// systemd's log of what it measured is root's: PID 1 opens it for the daemon (OpenFile=).
func TestLogThatSystemdOpenedGoesIntoEvidence(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	const record = "\x1e" + `{"pcr":9,"digests":[],"content_type":"systemd","content":{}}` + "\n"
	h.Write("tpm2-measure.log", record)
	h.Wrap = []string{"sh", "-c", `exec 3<"$0"; rm "$0"; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=measured; exec "$@"`, h.Path("tpm2-measure.log")}
	h.StartProcess()
	for range 2 { // from its beginning each time
		var e appraisal.Evidence
		must(t, json.Unmarshal([]byte(h.OK("node", "evidence", "--nonce", strings.Repeat("ab", 32))), &e))
		if string(e.UserspaceLog) != record {
			t.Errorf("the evidence has %q, want %q", e.UserspaceLog, record)
		}
	}
}

func TestSecondDaemonOnTheSameStateIsRefused(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.StartProcess()
	second := &daemontest.Daemon{T: t, Config: h.Config}
	second.LaunchProcess("--set", "agent_socket="+h.Path("agent2.sock"), "--set", "admin_socket="+h.Path("admin2.sock"))
	if err := second.Wait(); err == nil {
		t.Fatal("the second daemon started")
	}
	if said := second.Stderr.String(); !strings.Contains(said, "another vouchd uses this state directory") {
		t.Errorf("the second daemon said %s", said)
	}
	if _, err := h.Fetch(); err == nil {
		t.Error("entries appeared from nowhere")
	}
	if p := h.Problems(); len(p) != 0 {
		t.Errorf("the first daemon has problems: %q", p)
	}
}

func TestKeysAndLogOutliveARestartAndACrash(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	h.StartProcess()
	ctx := t.Context()
	addr := spiffe.WithAddr("unix://" + h.Path("agent.sock"))
	_, err := h.Fetch()
	must(t, err)
	token, err := spiffe.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "api"}, addr)
	must(t, err)
	bundles, err := spiffe.FetchX509Bundles(ctx, addr)
	must(t, err)

	h.Stop()
	h.VerifyLog()
	h.StartProcess()
	if _, err := spiffe.ValidateJWTSVID(ctx, token.Marshal(), "api", addr); err != nil {
		t.Errorf("a token from before the restart: %v", err)
	}
	after, err := spiffe.FetchX509Bundles(ctx, addr)
	must(t, err)
	if !bundles.Bundles()[0].Equal(after.Bundles()[0]) {
		t.Error("the root changed with a restart")
	}

	h.Kill()
	h.StartProcess() // over the socket that the crash left
	if _, err := spiffe.ValidateJWTSVID(ctx, token.Marshal(), "api", addr); err != nil {
		t.Errorf("a token from before the crash: %v", err)
	}
	h.Stop()
	h.VerifyLog()
}

// TestNoSecretIsInTheLogOrOnStandardError looks for what was handed out.
func TestNoSecretIsInTheLogOrOnStandardError(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	h.StartProcess()
	addr := spiffe.WithAddr("unix://" + h.Path("agent.sock"))
	token, err := spiffe.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "api"}, addr)
	must(t, err)
	if _, err := spiffe.ValidateJWTSVID(t.Context(), token.Marshal()+"x", "api", addr); err == nil {
		t.Error("a token with a character more is valid")
	}
	signature := token.Marshal()[strings.LastIndexByte(token.Marshal(), '.')+1:]
	h.Stop()
	out, err := exec.Command("grep", "-rlaF", "--", signature, h.Dir).CombinedOutput()
	if err == nil {
		t.Errorf("the token's signature is in %s", out)
	}
	if strings.Contains(h.Stderr.String(), signature) {
		t.Error("the token's signature is on standard error")
	}
}

func TestWrongUsageExitsWithTwo(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.LaunchProcess("--no-such-flag")
	var exit *exec.ExitError
	if err := h.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 2 {
		t.Errorf("ended with %v, want exit code 2", err)
	}
	fmt.Fprintln(t.Output(), h.Stderr)
}
