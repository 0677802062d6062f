//go:build clients

package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/leasetest"
)

// timesAsked is more often than limits.concurrent lets one identity lease.
const timesAsked = 12

// wantOneLease checks that all was answered from one lease, and each answer is recorded.
func (h *host) wantOneLease(credential string) {
	h.T.Helper()
	leases := make(map[string]bool)
	answers := 0
	for line := range strings.Lines(h.OK("log", "show", "--credential", credential, "--event", "lease.grant", "--output", "json")) {
		var r leasetest.Record
		must(h.T, json.Unmarshal([]byte(line), &r))
		leases[r.Credential.Lease] = true
		answers++
	}
	if len(leases) != 1 || answers < timesAsked {
		h.T.Errorf("%d answers from %d leases, want at least %d from 1", answers, len(leases), timesAsked)
	}
}

func TestRealToolsThatAskAtEveryCallShareALease(t *testing.T) {
	t.Run("git", func(t *testing.T) {
		h, f := newForge(t)
		env := append(h.helpers(), "GIT_SSL_CAINFO="+f.caFile)
		for range timesAsked {
			ran(t, env, "git", "-c", "credential.helper=vouch", "-c", "credential."+f.git.URL+".useHttpPath=true", "ls-remote", f.git.URL+"/acme/site.git")
		}
		h.wantOneLease("acme")
	})

	t.Run("kubectl", func(t *testing.T) {
		var f *forge
		cluster := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); !f.Lives(token) {
				w.WriteHeader(401)
				return
			}
			fmt.Fprint(w, `{"major":"1","minor":"32"}`)
		}))
		defer cluster.Close()
		h, forge := newForge(t, fmt.Sprintf("      - {kubernetes: %q}\n", cluster.URL))
		f = forge
		for name, arguments := range map[string]string{
			"that says the cluster": `"kubectl-credential"`,
			"that does not":         fmt.Sprintf(`"kubectl-credential", "--cluster", %q`, cluster.URL),
		} {
			h.Write("kubeconfig", fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "c",
"clusters": [{"name": "c", "cluster": {"server": %q, "insecure-skip-tls-verify": true}}],
"contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
"users": [{"name": "u", "user": {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "vouch", "args": [%s],
  "interactiveMode": "Never", "provideClusterInfo": %v}}}]}`, cluster.URL, arguments, name == "that says the cluster"))
			for range timesAsked {
				if out := ran(t, append(h.helpers(), "KUBECONFIG="+h.Path("kubeconfig")), "kubectl", "get", "--raw", "/version"); !strings.Contains(out, `"32"`) {
					t.Fatalf("a configuration %s: %s", name, out)
				}
			}
		}
		h.wantOneLease("acme")
	})

	t.Run("docker", func(t *testing.T) {
		var f *forge
		registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, password, _ := r.BasicAuth(); !f.Lives(password) {
				w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
				w.WriteHeader(401)
				return
			}
			const config = `{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers"}}`
			if strings.Contains(r.URL.Path, "/blobs/") {
				fmt.Fprint(w, config)
				return
			}
			manifest := fmt.Sprintf(`{"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json", "layers": [],
				"config": {"mediaType": "application/vnd.docker.container.image.v1+json", "size": %d, "digest": "sha256:%x"}}`, len(config), sha256.Sum256([]byte(config)))
			w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v2+json")
			w.Header().Set("Docker-Content-Digest", fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(manifest))))
			fmt.Fprint(w, manifest)
		}))
		defer registry.Close()
		place := strings.TrimPrefix(registry.URL, "http://")
		h, forge := newForge(t, fmt.Sprintf("      - {docker: %q}\n", place))
		f = forge
		must(t, os.MkdirAll(h.Path("docker"), 0o700))
		h.Write("docker/config.json", fmt.Sprintf(`{"credHelpers": {%q: "vouch"}}`, place))
		for range timesAsked {
			out := ran(t, append(h.helpers(), "DOCKER_CONFIG="+h.Path("docker"), "DOCKER_CLI_EXPERIMENTAL=enabled"), "docker", "manifest", "inspect", "--insecure", place+"/acme/site:1")
			if !strings.Contains(out, `"config"`) {
				t.Fatal(out)
			}
		}
		h.wantOneLease("acme")
	})

	// botocore asks again at each call from 15 minutes before the end.
	for name, calls := range map[string][]string{
		"botocore": {"/usr/bin/python3", "-c", `import botocore.session, os
sts = botocore.session.Session(profile="agent").create_client("sts", region_name="eu-central-1", endpoint_url=os.environ["STS"])
for _ in range(12):
    sts.get_caller_identity()`},
		"aws": {"sh", "-ec", `for _ in 1 2 3 4 5 6 7 8 9 10 11 12; do /usr/bin/aws --profile agent --region eu-central-1 --endpoint-url "$STS" sts get-caller-identity; done`},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			u := leasetest.NewUpstream(t, h.Host, leasetest.STS)
			h.Grants(fmt.Sprintf(`  - {name: s3, broker: federation, ttl: 15m, max_ttl: 1h, federation: {profile: aws-2011-06-15, audience: sts.amazonaws.com,
      endpoint: %q, ca_file: %q, region: eu-central-1, role_arn: "arn:aws:iam::123456789012:role/agent"}}
`, u.URL+"/", u.CAFile), "s3")
			h.Start()
			calledBy := make(map[string]int)
			api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calledBy[r.Header.Get("X-Amz-Security-Token")]++
				w.Header().Set("Content-Type", "text/xml")
				fmt.Fprint(w, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>a</Arn><UserId>u</UserId><Account>1</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`)
			}))
			defer api.Close()
			h.Write("aws", fmt.Sprintf("[profile agent]\ncredential_process = %s aws-credential-process s3 --socket unix://%s\n", daemontest.Program(t, "vouch"), h.Path("agent.sock")))
			ran(t, append(h.helpers(), "AWS_CONFIG_FILE="+h.Path("aws"), "STS="+api.URL), calls...)
			if calledBy[u.Canary+"-session"] != timesAsked {
				t.Errorf("calls by token: %v", calledBy)
			}
			h.wantOneLease("s3")
		})
	}
}
