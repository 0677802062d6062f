package join

import (
	"strings"
	"testing"

	"github.com/vouchd/vouchd/config"
)

func TestTheConfigurationKeepsWhatIsNotAboutTheServer(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]string{
		"a line":         "trust_domain: example.org # ours\n",
		"no line end":    "trust_domain: example.org",
		"other keys":     "# the host\ntrust_domain: example.org\nauthority:\n  # why\n  mode: standalone # for now\n  jwt_issuer: https://id.example.org\nlog:\n  ocsf: true\n",
		"another server": "trust_domain: example.org\nauthority:\n  mode: spire\n  spire: {server: \"old.example.org:1\", max_stale: 24h}\n",
		"an empty block": "trust_domain: example.org\nauthority:\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			after, err := edit([]byte(before), "spire.example.org:8081", config.AttestorJoinToken)
			if err != nil {
				t.Fatal(err)
			}
			c, err := config.Parse("vouchd.yaml", after)
			if err != nil {
				t.Fatalf("%v in\n%s", err, after)
			}
			a := c.Authority
			if a.Mode != config.ModeSPIRE || a.SPIRE.Server != "spire.example.org:8081" || a.SPIRE.Attestor != config.AttestorJoinToken {
				t.Errorf("it is %+v", a)
			}
			for _, comment := range []string{"# the host", "# why", "# for now", "# ours"} {
				if strings.Contains(before, comment) && !strings.Contains(string(after), comment) {
					t.Errorf("%q is gone:\n%s", comment, after)
				}
			}
			was, err := config.Parse("vouchd.yaml", []byte(before))
			if err != nil {
				t.Fatal(err)
			}
			if a.JWTIssuer != was.Authority.JWTIssuer || c.Log.OCSF != was.Log.OCSF || a.SPIRE.MaxStale != was.Authority.SPIRE.MaxStale {
				t.Errorf("something else has changed:\n%s", after)
			}
			again, err := edit(after, "spire.example.org:8081", config.AttestorJoinToken)
			if err != nil || string(again) != string(after) {
				t.Errorf("a second time it changes again, %v:\n%s", err, again)
			}
		})
	}
	for _, text := range []string{"- a\n", "a: [\n", "x\n"} {
		if _, err := edit([]byte(text), "s:1", "x509pop"); err == nil {
			t.Errorf("%q is edited", text)
		}
	}
}
