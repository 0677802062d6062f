package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestLoadFillsEveryDefaultButTheTrustDomain(t *testing.T) {
	t.Parallel()
	c, err := Load(writeFile(t, "trust_domain: example.org\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		TrustDomain:    spiffeid.RequireTrustDomainFromString("example.org"),
		TPM:            "/dev/tpmrm0",
		StateDir:       "/var/lib/vouchd",
		AgentSocket:    "/run/vouchd/agent.sock",
		AdminSocket:    "/run/vouchd/admin.sock",
		EntriesDir:     "/etc/vouchd/entries.d",
		CredentialsDir: "/etc/vouchd/credentials.d",
		Metrics:        "none",
		FederationDir:  "/etc/vouchd/federation.d",
		GrantsDir:      "/etc/vouchd/grants.d",
		ProgramsDir:    "/etc/vouchd/programs.d",
		ProgramsSocket: "/run/vouchd/run.sock",
		SystemdSocket:  "/run/vouchd/systemd.sock",
		ProxySocket:    "/run/vouchd/proxy.sock",
		Contact:        "this host's administrator",
		Authority: Authority{
			Mode:            "standalone",
			IssuingCATTL:    4 * time.Hour,
			RotationOverlap: 2 * time.Hour,
			JWTIssuer:       "https://example.org",
			JWTKey:          "sealed",
			JWTKeyTTL:       24 * time.Hour,
			JWTAlgorithms:   []string{"ES256", "RS256"},
			Vault:           Vault{Mount: "pki", Auth: "cert", TTL: 168 * time.Hour},
			SPIRE:           SPIRE{BundleFile: "/etc/vouchd/spire-bundle.pem", Attestor: AttestorX509POP, TokenFile: "/var/lib/vouchd/spire-join-token"},
		},
		Log: Log{AnchorEvery: time.Minute, MaxMiB: 4096, KeepFor: 2160 * time.Hour},
		Node: Node{
			Policy:        "/etc/vouchd/node-policy.yaml",
			AppraiseEvery: time.Hour,
			EKChainDir:    "/etc/vouchd/ek-chain.d",
		},
	}
	if diff := cmp.Diff(want, c, cmp.Comparer(func(a, b spiffeid.TrustDomain) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestJWTAlgorithmsAreThoseThatTheKeyCanSign(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ authority, want, err string }{
		{"{jwt_key: sealed}", "[ES256 RS256]", ""},
		{"{jwt_key: tpm}", "[ES256]", ""},
		{"{jwt_algorithms: [RS256]}", "[RS256]", ""},
		{"{jwt_algorithms: [RS256, ES256]}", "[RS256 ES256]", ""},
		{"{jwt_algorithms: [HS256]}", "", "jwt_algorithms \"HS256\""},
		{"{jwt_algorithms: [ES256, ES256]}", "", "names an algorithm twice"},
		{"{jwt_algorithms: [ES256, RS256], jwt_key: tpm}", "", "set authority.jwt_key: sealed"},
	} {
		c, err := Parse("v.yaml", []byte("trust_domain: example.org\nauthority: "+tt.authority+"\n"))
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v, want %s", tt.authority, err, tt.err)
			}
		} else if err != nil || fmt.Sprint(c.Authority.JWTAlgorithms) != tt.want {
			t.Errorf("%s: %+v, %v, want %s", tt.authority, c, err, tt.want)
		}
	}
}

func TestAnOldKeyIsTakenWithAWarning(t *testing.T) {
	t.Parallel()
	const domain = "trust_domain: example.org\n"
	for _, tt := range []struct {
		name, file string
		overrides  []string
		socket     string
		warnings   int
		err        string
	}{
		{"the new key", "programs_socket: /a\n", nil, "/a", 0, ""},
		{"the old key", "run_socket: /a\n", nil, "/a", 1, ""},
		{"both keys", "programs_socket: /a\nrun_socket: /a\n", nil, "", 0, "v.yaml:3: run_socket is the old name of programs_socket; give programs_socket alone"},
		{"a new override over the old key", "run_socket: /a\n", []string{"programs_socket=/b"}, "/b", 1, ""},
		{"an old override", "", []string{"run_socket=/b"}, "/b", 1, ""},
		{"both overrides", "", []string{"run_socket=/b", "programs_socket=/b"}, "", 0, "run_socket is the old name of programs_socket"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, err := Parse("v.yaml", []byte(domain+tt.file), tt.overrides...)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.ProgramsSocket != tt.socket || len(c.Warnings) != tt.warnings {
				t.Errorf("got %q with warnings %q, want %q with %d", c.ProgramsSocket, c.Warnings, tt.socket, tt.warnings)
			}
			if tt.warnings > 0 && !strings.HasSuffix(c.Warnings[0], ": run_socket is deprecated; use programs_socket") {
				t.Errorf("the warning is %q", c.Warnings[0])
			}
		})
	}
}

func TestLoadTakesOverridesBeforeTheFile(t *testing.T) {
	t.Parallel()
	c, err := Load(writeFile(t, "authority:\n  jwt_key: sealed\n  issuing_ca_ttl: 1h\n"),
		"trust_domain=example.net", "authority.jwt_key=tpm", "tpm=unix:/tmp/tpm.sock", "state_dir=/5")
	if err != nil {
		t.Fatal(err)
	}
	if c.TrustDomain.Name() != "example.net" || c.Authority.JWTKey != "tpm" || c.TPM != "unix:/tmp/tpm.sock" || c.StateDir != "/5" {
		t.Errorf("overrides are not in %+v", c)
	}
	if c.Authority.IssuingCATTL != time.Hour || c.Authority.MaxX509TTL() != 30*time.Minute {
		t.Errorf("issuing CA of the file is not in %+v", c.Authority)
	}
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	long := "/" + strings.Repeat("s", 107)
	for _, tt := range []struct {
		name      string
		file      string
		overrides []string
		want      string
	}{
		{"an empty file", "", nil,
			"vouchd.yaml:1: trust_domain is missing; add it, like example.org"},
		{"a trust domain that is none", "trust_domain: Example.org", nil,
			`vouchd.yaml:1: trust_domain "Example.org": trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores; write it like example.org`},
		{"a trust domain that is too long", "trust_domain: " + strings.Repeat("a", 256), nil,
			"vouchd.yaml:1: trust_domain has 256 bytes and may have 255; shorten it"},
		{"a SPIFFE ID for a trust domain", "trust_domain: spiffe://example.org/a", nil,
			`vouchd.yaml:1: trust_domain "spiffe://example.org/a" is read as "example.org"; write it so`},
		{"a TPM socket without a path", "trust_domain: a", []string{"tpm=unix:"},
			`--set tpm: tpm "" is not a plain absolute path; write it from / without . and .. and without / at its end`},
		{"an unknown key, at both levels", "trust_domain: a\nagentsocket: /x\nauthority:\n  ttl: 1h\n", nil,
			`vouchd.yaml:2: unknown key "agentsocket"; the nearest known is agent_socket
vouchd.yaml:4: unknown key "ttl"; the nearest known is mode`},
		{"every problem in one run", "agent_socket: x\ntpm: 5\nmode: y\nauthority:\n  rotation_overlap: 3h\n", []string{"state_dir=z", "tpn"},
			`--set state_dir: state_dir "z" is not a plain absolute path; write it from / without . and .. and without / at its end
--set tpn: has no value; write it as key=value
vouchd.yaml:1: trust_domain is missing; add it, like example.org
vouchd.yaml:1: agent_socket "x" is not a plain absolute path; write it from / without . and .. and without / at its end
vouchd.yaml:2: tpm must be text; put 5 in quotes
vouchd.yaml:3: unknown key "mode"; the nearest known is node
vouchd.yaml:5: authority.rotation_overlap 3h is more than half of authority.issuing_ca_ttl; give it 2h or less`},
		{"a socket path that Linux does not take", "trust_domain: a\nagent_socket: " + long, nil,
			"vouchd.yaml:2: agent_socket has 108 bytes and may have 107; choose a shorter path"},
		{"a path from nowhere", "trust_domain: a\nstate_dir: var\nentries_dir: /etc/../x", nil,
			`vouchd.yaml:2: state_dir "var" is not a plain absolute path; write it from / without . and .. and without / at its end
vouchd.yaml:3: entries_dir "/etc/../x" is not a plain absolute path; write it from / without . and .. and without / at its end`},
		{"one path for two sockets", "trust_domain: a\nagent_socket: /s\nadmin_socket: /s", nil,
			"vouchd.yaml:3: admin_socket is the agent_socket too; give each its own path"},
		{"one directory for entries and credentials", "trust_domain: a\nentries_dir: /etc/vouchd/credentials.d", nil,
			"vouchd.yaml: credentials_dir is the entries_dir too; give each its own directory"},
		{"a SPIRE server without an address", "trust_domain: a\nauthority: {mode: spire, jwt_key: tpm}", nil,
			`vouchd.yaml: authority.spire.server is missing, and authority.mode is spire; add it, such as spire.example.org:8081
vouchd.yaml:2: authority.jwt_key is tpm, but authority.mode is spire: the server signs JWT-SVIDs; remove it`},
		{"a SPIRE server that cannot be one", "trust_domain: a\nauthority:\n  mode: spire\n  spire:\n    server: https://spire.example.org\n    attestor: none\n    max_stale: 1s\n", nil,
			`vouchd.yaml:5: authority.spire.server "https://spire.example.org" is not a host and its port; write it like spire.example.org:8081
vouchd.yaml:6: authority.spire.attestor "none" is not valid; use x509pop or join_token or vouchd
vouchd.yaml:7: authority.spire.max_stale "1s" is out of range; use 1m to 8784h`},
		{"a mode that this version does not have", "trust_domain: a\nauthority: {mode: cluster, jwt_key: file}", nil,
			`vouchd.yaml:2: authority.mode "cluster" is not valid; use standalone or enrolled or vault or spire
vouchd.yaml:2: authority.jwt_key "file" is not valid; use sealed or tpm`},
		{"lifetimes out of range", "trust_domain: a\nauthority:\n  issuing_ca_ttl: 1m\n  jwt_key_ttl: 1h\n", nil,
			`vouchd.yaml:3: authority.issuing_ca_ttl "1m" is out of range; use 2m to 168h
vouchd.yaml:4: authority.jwt_key_ttl "1h" is out of range; use 2h to 2160h`},
		{"an overlap that leaves no time to sign", "trust_domain: a\nauthority:\n  rotation_overlap: 2h1s\n", nil,
			"vouchd.yaml:3: authority.rotation_overlap 2h0m1s is more than half of authority.issuing_ca_ttl; give it 2h or less"},
		{"an issuer no relying party could fetch from", "trust_domain: a\nauthority:\n  jwt_issuer: http://example.org\n", nil,
			`vouchd.yaml:3: authority.jwt_issuer "http://example.org" is not an https URL without user, query and fragment; write it like https://example.org`},
		{"a witness that somebody on the way could speak for", "trust_domain: a\nlog:\n  witnesses:\n    - {url: \"http://witness.example.org\", key: w1+0+x}\n", nil,
			`vouchd.yaml:4: log.witnesses "http://witness.example.org" is not an https URL without user, query and fragment; write it like https://witness.example.org (http may lead to this machine alone)`},
		{"an override of an unknown key", "trust_domain: a", []string{"authority.issuer=x"},
			"--set authority.issuer: unknown key; the nearest known is authority.jwt_issuer"},
		{"an override with a bad value", "trust_domain: a", []string{"authority.issuing_ca_ttl=soon"},
			`--set authority.issuing_ca_ttl: authority.issuing_ca_ttl "soon" is not a length of time; write it like 90s, 5m or 1h30m`},
		{"an override without a value", "trust_domain: a", []string{"tpm"},
			"--set tpm: has no value; write it as key=value"},
		{"an override with an empty value", "trust_domain: a", []string{"tpm="},
			"--set tpm: tpm has no value; give it one or remove the line"},
		{"a list where keys belong", "- trust_domain: a", nil,
			"vouchd.yaml:1: the document must be keys with values, and is a list"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := writeFile(t, tt.file)
			_, err := Load(path, tt.overrides...)
			got := strings.ReplaceAll(fmt.Sprint(err), path, "vouchd.yaml")
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestLoadNamesAMissingFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "vouchd.yaml")
	_, err := Load(path)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("Load of a missing file: %v", err)
	}
}

func writeFile(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vouchd.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
