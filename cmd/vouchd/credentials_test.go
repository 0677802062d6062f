package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/workloadapi/credentialapi/client"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
)

func TestLoginEndsWithItsAgent(t *testing.T) {
	t.Parallel()
	h, pg := newLeasingHost(t)
	h.Start()
	a := leasetest.StartAgent(t, h.Host)
	session := a.Thief(t, pg)
	h.CheckSecret(a.Login)
	a.Exit(t)
	a.CheckGone(t, pg, session, time.Now())
	h.CheckSecret(a.Login)

	eventually(t, "the end is recorded", func() bool {
		out, _, _ := h.Vouch("log", "show", "--event", "lease.revoke")
		return strings.Contains(out, "lease.revoke")
	})
	out, stderr, code := h.Vouch("log", "show", "--credential", "tides", "--output", "json")
	if code != 0 {
		t.Fatalf("vouch log show: %s", stderr)
	}
	told := make(map[string]leasetest.Record)
	for line := range strings.Lines(out) {
		var r leasetest.Record
		must(t, json.Unmarshal([]byte(line), &r))
		told[r.Event] = r
		if r.Identity != "spiffe://example.org/agent" || r.Outcome != "success" || r.Credential.Handle != a.Username || r.Credential.Lease != told["lease.grant_intent"].Credential.Lease {
			t.Errorf("record tells another story: %s", line)
		}
	}
	grant := told["lease.grant"]
	if grant.Workload.PID != a.Cmd.Process.Pid || grant.Credential.Exposure != "memory" || grant.Credential.TTL != 300 || grant.Credential.NotAfter.IsZero() ||
		grant.RequestID == "" || grant.RequestID != told["lease.grant_intent"].RequestID {
		t.Errorf("grant tells too little: %+v", grant)
	}
	if told["lease.grant_intent"].Credential.ScopeAsked != "table=tides" {
		t.Errorf("intent does not say what was asked for: %+v", told["lease.grant_intent"])
	}
	if use := told["credential.use"]; use.Use.Count == 0 || use.Use.Source != "upstream" {
		t.Errorf("use is not told, though sessions were open: %+v", use)
	}
	if end := told["lease.revoke"]; end.Reason != "process ended" || end.Credential.Revocation != "hard" {
		t.Errorf("end tells too little: %+v", end)
	}
	h.Stop()
	if out, stderr, code := h.Vouch("log", "verify"); code != 0 {
		t.Errorf("vouch log verify exits %d: %s%s", code, out, stderr)
	}
}

func TestLoginEndsThoughTheDaemonWasKilled(t *testing.T) {
	t.Parallel()
	h, pg := newLeasingHost(t)
	h.StartProcess()
	gone, stays := leasetest.StartAgent(t, h.Host), leasetest.StartAgent(t, h.Host)
	session := gone.Thief(t, pg)
	h.Kill()
	gone.Exit(t)
	if err := session.Ping(t.Context()); err != nil {
		t.Fatalf("the login ended without a daemon to end it: %v", err)
	}
	h.StartProcess()
	gone.CheckGone(t, pg, session, time.Now())
	h.CheckSecret(gone.Login)

	// An agent that lived through it keeps its login, and no longer than it lives.
	session = stays.Thief(t, pg)
	stays.Exit(t)
	stays.CheckGone(t, pg, session, time.Now())
}

func TestLoginOutlastsAStartWithoutTheBrokenFileThatGrantsIt(t *testing.T) {
	t.Parallel()
	h, pg := newLeasingHost(t)
	granting := h.Read("entries.d/a.yaml")
	h.Write("entries.d/b.yaml", strings.ReplaceAll(granting, "/agent", "/other"))
	h.StartProcess()
	a := leasetest.StartAgent(t, h.Host)
	session := a.Thief(t, pg)
	h.Stop()
	h.Write("entries.d/a.yaml", granting+"?")
	h.StartProcess()
	loaded := func() time.Time {
		st, err := h.Admin().Status(t.Context())
		must(t, err)
		return st.Entries.Loaded
	}
	before := loaded()
	h.Write("entries.d/b.yaml", strings.ReplaceAll(granting, "/agent", "/another"))
	eventually(t, "a change of the other file is in force", func() bool { return loaded().After(before) })
	if err := session.Ping(t.Context()); err != nil {
		t.Errorf("the login has ended while the file that grants it was broken: %v", err)
	}
	h.Write("entries.d/a.yaml", granting)
	eventually(t, "all is in force", func() bool { return len(h.Problems()) == 0 })
	if err := session.Ping(t.Context()); err != nil {
		t.Errorf("the login has ended once the file was mended: %v", err)
	}
	h.Write("entries.d/a.yaml", strings.ReplaceAll(granting, "tides, ", ""))
	a.CheckGone(t, pg, session, time.Now().Add(time.Second))
}

func TestWatchSendsTheNextLoginBeforeTheLastEnds(t *testing.T) {
	t.Parallel()
	h, pg := newLeasingHost(t)
	h.Start()
	client, err := client.New("unix://" + h.Path("agent.sock"))
	must(t, err)
	defer client.Close()
	var got []leasetest.Login
	enough := errors.New("enough")
	err = client.Watch(t.Context(), &credentialv1.GrantCredentialRequest{Name: "tides", TtlSeconds: 3}, func(_ *credentialv1.Lease, fields []credential.Field) error {
		var l leasetest.Login
		for _, f := range fields {
			switch f.Name {
			case "username":
				l.Username = string(f.Value.Reveal())
			case "password":
				l.Password = string(f.Value.Reveal())
			}
		}
		if got = append(got, l); len(got) < 3 {
			return nil
		}
		return enough
	})
	if err != enough {
		t.Fatalf("the watch ended early: %v", err)
	}
	got[1].Thief(t, pg) // works still
	got[2].Thief(t, pg)
	eventually(t, "the first login is refused", func() bool {
		conn, err := pg.Login(t.Context(), got[0].Username, got[0].Password, "postgres")
		if err == nil {
			conn.Close(t.Context())
		}
		return err != nil
	})
	h.Write("entries.d/a.yaml", fmt.Sprintf("entries:\n  - {spiffe_id: \"spiffe://example.org/agent\", selectors: [\"unix:uid:%d\"]}\n", os.Getuid()))
	eventually(t, "no lease is left", func() bool {
		leases, err := h.Admin().Leases(t.Context())
		must(t, err)
		return len(leases) == 0
	})
}
