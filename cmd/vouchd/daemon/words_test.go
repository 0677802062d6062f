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
	h.Stop()
	for what, err := range map[string]error{"an SVID": refused, "a credential": ungranted} {
		if err == nil {
			t.Errorf("%s was handed out", what)
			continue
		}
		said := regexp.MustCompile(`no identity issued; ask the platform team, #help \(request (\w+)\)`).FindStringSubmatch(err.Error())
		if said == nil {
			t.Errorf("who wants %s is told %v", what, err)
			continue
		}
		if out := h.OK("log", "show", "--request", said[1]); !strings.Contains(out, "no entry matches") {
			t.Errorf("the log has of that request: %s", out)
		}
	}
}
