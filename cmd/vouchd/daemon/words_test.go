package daemon_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/workloadapi/credentialapi/client"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
)

func TestWhoIsRefusedIsToldWhomToAskAndWithWhichRequest(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Write("entries.d/a.yaml", "entries: []\n")
	h.Start("contact=the platform team, #help")
	_, refused := h.Fetch()
	c, err := client.New("unix://" + h.Path("agent.sock"))
	must(t, err)
	defer c.Close()
	_, _, ungranted := c.Grant(t.Context(), &credentialv1.GrantCredentialRequest{Name: "x"})
	said := regexp.MustCompile(`no identity issued; ask the platform team, #help \(request (\w+)\)`)
	for _, args := range [][]string{
		{"fetch", "x509"}, {"fetch", "jwt", "--audience", "a"}, {"fetch", "bundle"}, {"get", "x"}, {"get", "--list"}, {"ssh-agent", "--credential", "x", "--", "true"},
		{"exec", "--credential", "x=Y", "--", "true"}, {"exec", "--proxy", "x", "--", "true"},
	} {
		if _, stderr, code := h.Vouch(args...); code != 1 || !said.MatchString(stderr) || strings.Contains(stderr, "rpc error") {
			t.Errorf("vouch %s exits %d and says %s", strings.Join(args, " "), code, stderr)
		}
	}
	h.Stop()
	for what, err := range map[string]error{"an SVID": refused, "a credential": ungranted} {
		if err == nil {
			t.Errorf("%s was handed out", what)
			continue
		}
		request := said.FindStringSubmatch(err.Error())
		if request == nil {
			t.Errorf("who wants %s is told %v", what, err)
			continue
		}
		if out := h.OK("log", "show", "--request", request[1]); !strings.Contains(out, "no entry matches") {
			t.Errorf("the log has of that request: %s", out)
		}
	}
}
