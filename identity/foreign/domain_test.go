package foreign

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/config"
)

// parsed parses one file of federation.d with these elements.
func parsed(elements string) (*Domains, error) {
	return Parse([]config.File{{Path: "p.yaml", Data: []byte("federation:\n" + elements)}}, own)
}

func TestDomainsAreReadAsTheyAreWritten(t *testing.T) {
	t.Parallel()
	ds, err := parsed(`
  - trust_domain: partner.example
    bundle_endpoint_url: https://spiffe.partner.example:8443/bundle
    profile: https_spiffe
    endpoint_spiffe_id: spiffe://partner.example/bundle
    bundle_file: /etc/vouchd/federation.d/partner.example.bundle
  - {trust_domain: other.example, bundle_endpoint_url: "https://other.example/bundle", profile: https_web}
  - {trust_domain: third.example, bundle_endpoint_url: "https://other.example/third", profile: https_spiffe, endpoint_spiffe_id: "spiffe://partner.example/bundle"}
  - {trust_domain: files.example, bundle_file: /srv/files.example.bundle}
`)
	if err != nil {
		t.Fatal(err)
	}
	all := ds.All()
	if len(all) != 4 || all[0].EndpointID.String() != "spiffe://partner.example/bundle" || all[0].Profile != SPIFFE || all[1].Profile != Web || all[3].File != "/srv/files.example.bundle" || all[3].Endpoint != "" {
		t.Errorf("read %+v", all)
	}
	if !ds.Has(partner) || ds.Has(own) {
		t.Error("it is not known which are configured")
	}
}

func TestDomainThatCannotBeTrustedAsItIsWrittenIsRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, elements, want string }{
		{"own trust domain", `  - {trust_domain: example.org, bundle_file: /f}`, "p.yaml:2: trust_domain example.org is this host's own"},
		{"no trust domain", `  - {bundle_file: /f}`, "trust_domain is missing"},
		{"trust domain with a path", `  - {trust_domain: "spiffe://partner.example/x", bundle_file: /f}`, "trust_domain"},
		{"twice", "  - {trust_domain: partner.example, bundle_file: /f}\n  - {trust_domain: partner.example, bundle_file: /g}", "p.yaml:3: trust domain partner.example is at p.yaml:2 too; remove one"},
		{"no source", `  - {trust_domain: partner.example}`, "has no source of its bundle; give bundle_endpoint_url and profile, or bundle_file"},
		{"unknown key", `  - {trust_domain: partner.example, bundle_file: /f, insecure: true}`, `unknown key "insecure"`},
		{"unknown profile", `  - {trust_domain: partner.example, bundle_endpoint_url: "https://p.example/b", profile: http}`, "profile"},
		{"no profile", `  - {trust_domain: partner.example, bundle_endpoint_url: "https://p.example/b"}`, "profile is missing"},
		{"http", `  - {trust_domain: partner.example, bundle_endpoint_url: "http://p.example/b", profile: https_web}`, "is not an https URL"},
		{"user in the URL", `  - {trust_domain: partner.example, bundle_endpoint_url: "https://u:p@p.example/b", profile: https_web}`, "is not an https URL"},
		{"query in the URL", `  - {trust_domain: partner.example, bundle_endpoint_url: "https://p.example/b?k=v", profile: https_web}`, "is not an https URL"},
		{"URL without host", `  - {trust_domain: partner.example, bundle_endpoint_url: "https:///b", profile: https_web}`, "is not an https URL"},
		{"SPIFFE ID of a web endpoint", `  - {trust_domain: partner.example, bundle_endpoint_url: "https://p.example/b", profile: https_web, endpoint_spiffe_id: "spiffe://partner.example/b"}`, "is for profile https_spiffe"},
		{"SPIFFE endpoint without ID", `  - {trust_domain: partner.example, bundle_endpoint_url: "https://p.example/b", profile: https_spiffe, bundle_file: /f}`, "endpoint_spiffe_id is missing"},
		{"SPIFFE endpoint without first bundle", `  - {trust_domain: partner.example, bundle_endpoint_url: "https://p.example/b", profile: https_spiffe, endpoint_spiffe_id: "spiffe://partner.example/b"}`, "bundle_file is missing; the first bundle of partner.example can't come from an endpoint that is verified with it"},
		{"endpoint of our own trust domain", `  - {trust_domain: partner.example, bundle_endpoint_url: "https://p.example/b", profile: https_spiffe, endpoint_spiffe_id: "spiffe://example.org/b", bundle_file: /f}`, "is in this host's own trust domain"},
		{"endpoint of an unknown trust domain", `  - {trust_domain: partner.example, bundle_endpoint_url: "https://p.example/b", profile: https_spiffe, endpoint_spiffe_id: "spiffe://third.example/b", bundle_file: /f}`, "is in trust domain third.example, whose bundle verifies it and which is not configured"},
		{"profile without endpoint", `  - {trust_domain: partner.example, profile: https_web, bundle_file: /f}`, "profile is that of an endpoint"},
		{"ID without endpoint", `  - {trust_domain: partner.example, endpoint_spiffe_id: "spiffe://partner.example/b", bundle_file: /f}`, "endpoint_spiffe_id is that of an endpoint"},
		{"relative file", `  - {trust_domain: partner.example, bundle_file: f}`, "is not a plain absolute path"},
		{"file with dots", `  - {trust_domain: partner.example, bundle_file: /a/../f}`, "is not a plain absolute path"},
	} {
		ds, err := parsed(tt.elements)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %+v, %v; want an error with %q", tt.name, ds.All(), err, tt.want)
		}
		if strings.Count(err.Error(), "\n") > 0 {
			t.Errorf("%s: one mistake is told as %v", tt.name, err)
		}
	}
}

func TestHostFederatesWithSoManyAndNoMore(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	for i := range maxDomains + 1 {
		text.WriteString("  - {trust_domain: d" + strings.Repeat("x", i) + ".example, bundle_file: /f}\n")
	}
	if _, err := parsed(text.String()); err == nil || !strings.Contains(err.Error(), "more than 100 trust domains") {
		t.Errorf("of 101 trust domains came %v", err)
	}
}

func TestDirectoryThatIsMissingNamesNobody(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ds, err := Load(filepath.Join(dir, "missing"), own, false)
	if err != nil || len(ds.All()) != 0 || ds.Digest() != [32]byte{} {
		t.Errorf("a missing directory has %+v, %v", ds.All(), err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte("federation:\n  - {trust_domain: partner.example, bundle_file: /f}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ds, err = Load(dir, own, false)
	if err != nil || !ds.Has(partner) || ds.Digest() == [32]byte{} {
		t.Errorf("a directory with one has %+v, %v", ds.All(), err)
	}
}
