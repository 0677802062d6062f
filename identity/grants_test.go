package identity_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/identity"
)

var grantsDomain = spiffeid.RequireTrustDomainFromString("example.org")

func grants(texts ...string) (*identity.Grants, error) {
	var files []config.File
	for i, text := range texts {
		files = append(files, config.File{Path: fmt.Sprintf("%c.yaml", 'a'+i), Data: []byte(text)})
	}
	return identity.ParseGrants(files, grantsDomain)
}

func TestCredentialsAreGrantedToTheIdentityThatIsNamed(t *testing.T) {
	t.Parallel()
	g, err := grants("grants:\n  - spiffe_id: spiffe://example.org/a\n    credentials: [github, db]\n",
		"grants:\n  - {spiffe_id: \"spiffe://example.org/b\", credentials: [db]}\n")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string][]string{"/a": {"github", "db"}, "/b": {"db"}, "/a/b": nil, "/": nil, "": nil} {
		id, _ := spiffeid.FromString("spiffe://example.org" + path)
		if got := g.To(id); !slices.Equal(got, want) {
			t.Errorf("%s is granted %q, want %q", path, got, want)
		}
	}
	var none *identity.Grants
	if got := none.To(spiffeid.RequireFromString("spiffe://example.org/a")); got != nil {
		t.Errorf("without grants it is granted %q", got)
	}
	if empty, err := grants(); err != nil || empty.Digest() != [32]byte{} || g.Digest() == [32]byte{} {
		t.Errorf("digests %x and %x, %v", empty.Digest(), g.Digest(), err)
	}
}

func TestGrantsThatCannotBeMeantAreRefusedWithTheirPlaces(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"grants:\n  - spiffe_id: spiffe://other.example/a\n    credentials: [x]\n":                                                            "a.yaml:2: spiffe_id spiffe://other.example/a is not in trust domain example.org",
		"grants:\n  - spiffe_id: spiffe://example.org\n    credentials: [x]\n":                                                                "a.yaml:2: spiffe_id spiffe://example.org has no path",
		"grants:\n  - credentials: [x]\n":                                                                                                     "a.yaml:2: spiffe_id is missing",
		"grants:\n  - spiffe_id: spiffe://example.org/a\n":                                                                                    "a.yaml:2: credentials is missing",
		"grants:\n  - spiffe_id: spiffe://example.org/a\n    credentials: [x, x]\n":                                                           "a.yaml:3: credential \"x\" is granted to spiffe://example.org/a twice",
		"grants:\n  - spiffe_id: spiffe://example.org/a\n    credentials: [x]\n  - spiffe_id: spiffe://example.org/a\n    credentials: [y]\n": "a.yaml:4: spiffe_id spiffe://example.org/a has grants at a.yaml:2 already",
		"grants:\n  - spiffe_id: spiffe://example.org/*\n    credentials: [x]\n":                                                              "a.yaml:2: spiffe_id",
		"grant: []\n": "a.yaml:1: unknown key \"grant\"",
	} {
		if _, err := grants(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func FuzzGrants(f *testing.F) {
	f.Add("grants:\n  - spiffe_id: spiffe://example.org/a\n    credentials: [github, db]\n")
	f.Fuzz(func(t *testing.T, text string) {
		g, err := grants(text)
		if err != nil {
			return
		}
		for id := range g.All() {
			if !id.MemberOf(grantsDomain) || id.Path() == "" || len(g.To(id)) == 0 {
				t.Errorf("%q grants %q to %s", text, g.To(id), id)
			}
		}
	})
}
