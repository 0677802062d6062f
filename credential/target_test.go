package credential_test

import (
	"strings"
	"testing"

	"github.com/vouchd/vouchd/credential"
)

func TestPlaceOfAToolHasOneForm(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ tool, in, want string }{
		{credential.Git, "https://GitHub.com", "https://github.com"},
		{credential.Git, "https://github.com:443/", "https://github.com"},
		{credential.Git, "https://github.com:8443/acme/site.git", "https://github.com:8443/acme/site.git"},
		{credential.Git, "http://127.0.0.1:8080/x", "http://127.0.0.1:8080/x"},
		{credential.Git, "http://localhost:80", "http://localhost"},
		{credential.Git, "https://[2001:DB8::1]:443/x", "https://[2001:db8::1]/x"},
		{credential.Git, "https://dev.azure.com/org/My%20Project", "https://dev.azure.com/org/My Project"},
		{credential.Git, "https://dev.azure.com/org/My Project", "https://dev.azure.com/org/My Project"},
		{credential.Git, "https://dev.azure.com/org/Team%20(A)", "https://dev.azure.com/org/Team (A)"},
		{credential.Git, "https://dev.azure.com/org/Gr%C3%BCn/x", "https://dev.azure.com/org/Grün/x"},
		{credential.Docker, "registry.example.com", "registry.example.com"},
		{credential.Docker, "https://Registry.example.com:443/v2/", "registry.example.com"},
		{credential.Docker, "localhost:5000", "localhost:5000"},
		{credential.Docker, "https://index.docker.io/v1/", "docker.io"},
		{credential.Docker, "docker.io", "docker.io"},
		{credential.Docker, "http://127.0.0.1:5000", "127.0.0.1:5000"},
		{credential.Kubernetes, "https://10.0.0.1:6443/", "https://10.0.0.1:6443"},
	} {
		if got, err := credential.NewTarget(tt.tool, tt.in); err != nil || got.Location != tt.want || got.Tool != tt.tool {
			t.Errorf("%s %s is %+v, %v; want %s", tt.tool, tt.in, got, err, tt.want)
		}
	}
}

func TestWhatIsNoPlaceOfAToolIsRefused(t *testing.T) {
	t.Parallel()
	for tool, bad := range map[string][]string{
		credential.Git: {
			"", "github.com", "http://github.com", "ssh://github.com", "https://", "https:///x", "https://user@github.com", "https://github.com?x", "https://github.com#x",
			"https://github.com/a/../b", "https://github.com//a", "https://github.com/%2e%2e/b", "https://github.com/a%2fb", "https://github.com/a%5Cb", "https://github.com/a%00b", "https://github.com/a%0ab", "https://github.com/%ff", "https://git hub.com", "https://github.com/a\nb",
			"https://github.com:", "https://github.com:0x1", "https://*.github.com", "https://github..com/" + strings.Repeat("a", 3000), "https://gïthub.com", "http://127.0.0.1.example.com",
		},
		credential.Docker:     {"", "registry.example.com/team", "http://registry.example.com", "http://https://registry.example.com", "ftp://registry.example.com", "user@registry.example.com", "*", "registry.example.com:", "a b"},
		credential.Kubernetes: {"", "https://10.0.0.1/a b", "10.0.0.1:6443", "http://10.0.0.1", "https://u:p@10.0.0.1"},
		"helm":                {"https://example.com"},
	} {
		for _, in := range bad {
			if got, err := credential.NewTarget(tool, in); err == nil {
				t.Errorf("%s %q is %+v", tool, in, got)
			}
		}
	}
}

func TestTargetCoversItsPlaceAndForGitWhatIsBelow(t *testing.T) {
	t.Parallel()
	target := func(tool, location string) credential.Target {
		got, err := credential.NewTarget(tool, location)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	acme := target(credential.Git, "https://github.com/acme")
	for _, tt := range []struct {
		name  string
		of    credential.Target
		asked credential.Target
		want  bool
	}{
		{"itself", acme, acme, true},
		{"a repository below", acme, target(credential.Git, "https://github.com/acme/site.git"), true},
		{"a name that begins alike", acme, target(credential.Git, "https://github.com/acme-evil/site.git"), false},
		{"the host above", acme, target(credential.Git, "https://github.com"), false},
		{"another port", acme, target(credential.Git, "https://github.com:8443/acme"), false},
		{"another host", target(credential.Git, "https://github.com"), target(credential.Git, "https://github.com.evil.org"), false},
		{"plain http", target(credential.Git, "https://localhost"), target(credential.Git, "http://localhost"), false},
		{"another tool", target(credential.Kubernetes, "https://github.com/acme"), acme, false},
		{"a path below a cluster", target(credential.Kubernetes, "https://k8s"), target(credential.Kubernetes, "https://k8s/x"), false},
		{"nothing", credential.Target{}, credential.Target{}, false},
		{"everything", credential.Target{Tool: credential.Git}, acme, false},
	} {
		if got := tt.of.Covers(tt.asked); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
