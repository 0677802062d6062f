package vouchd

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// mayImport is which of our packages a package may import (DESIGN: arrows
// point down only). A package that is not here may import none of ours.
var mayImport = map[string][]string{
	"state":                            nil,
	"secret":                           nil,
	"config":                           nil,
	"attest":                           nil,
	"audit":                            nil,
	"audit/analyst":                    {"audit", "audit/reader"},
	"audit/audittest":                  {"audit"},
	"audit/export":                     {"audit", "audit/analyst", "audit/reader"},
	"audit/internal/format":            {"audit", "state"},
	"audit/reader":                     {"audit", "audit/internal/format", "state"},
	"audit/witness":                    {"audit", "audit/internal/format", "audit/reader"},
	"audit/writer":                     {"audit", "audit/internal/format", "state"},
	"audit/witness/witnesstest":        nil,
	"systemd":                          nil,
	"packaging/version":                nil,
	"packaging/inventory":              nil,
	"packaging/manual":                 nil,
	"attest/appraisal":                 {"attest", "attest/appraisal/bootlog", "config"},
	"attest/appraisal/bootlog":         nil,
	"attest/node":                      {"attest/appraisal", "secret"},
	"attest/node/tpmtest":              nil,
	"enrol":                            {"attest/appraisal", "attest/node", "state"},
	"attest/process":                   {"attest", "attest/process/cgroup", "attest/process/file", "systemd"},
	"attest/process/cgroup":            nil,
	"attest/process/file":              nil,
	"programs":                         {"attest/process", "attest/process/file", "config", "systemd"},
	"identity":                         {"attest", "config", "secret"},
	"identity/foreign":                 {"config"},
	"identity/spire":                   {"attest", "identity", "identity/foreign", "identity/spire/spirev1", "secret"},
	"identity/spire/spirev1":           nil,
	"spireplugin":                      {"attest/appraisal", "spireplugin/exchange", "spireplugin/pluginv1"},
	"spireplugin/exchange":             {"attest/appraisal"},
	"spireplugin/host":                 {"attest/node", "spireplugin/exchange"},
	"spireplugin/pluginv1":             nil,
	"identity/spire/spiretest":         {"identity/spire/spirev1"},
	"workloadapi":                      {"attest/process", "audit", "identity", "identity/foreign", "workloadapi/gate"},
	"identity/vaultca/vaultcatest":     nil,
	"identity/vaultca":                 {"credential/vault/server", "identity", "secret"},
	"workloadapi/gate":                 {"attest", "attest/process", "audit", "audit/writer", "identity", "workloadapi/gate/wire"},
	"workloadapi/gate/wire":            nil,
	"workloadapi/proxy":                {"attest", "attest/process", "audit", "credential", "credential/database", "credential/lease", "credential/policy", "identity", "workloadapi/gate", "workloadapi/proxy/link", "workloadapi/proxy/relay"},
	"workloadapi/proxy/address":        nil,
	"workloadapi/proxy/databases":      {"attest/process", "credential/database", "workloadapi/gate/wire", "workloadapi/proxy/address", "workloadapi/proxy/link"},
	"workloadapi/proxy/link":           {"credential/database", "credential/policy", "workloadapi/proxy/relay"},
	"workloadapi/proxy/relay":          nil,
	"workloadapi/proxy/door":           {"attest/process", "credential/policy", "redact", "secret", "workloadapi/gate/wire", "workloadapi/proxy/address", "workloadapi/proxy/link", "workloadapi/proxy/relay"},
	"redact":                           {"secret"},
	"workloadapi/gate/gatetest":        {"attest", "attest/node", "attest/node/tpmtest", "attest/process", "audit", "audit/reader", "audit/writer", "identity", "state", "workloadapi/gate"},
	"workloadapi/credentialapi":        {"attest", "attest/process", "audit", "credential", "credential/database", "credential/lease", "identity", "secret", "systemd", "workloadapi/credentialv1", "workloadapi/gate"},
	"workloadapi/credentialapi/client": {"secret", "workloadapi/credentialv1"},
	"workloadapi/credentialv1":         nil,
	"workloadapi/admin":                {"attest/process", "audit", "credential", "credential/lease", "credential/sealed", "identity", "secret", "workloadapi/admin/view", "workloadapi/gate"},
	"workloadapi/admin/client":         {"secret", "workloadapi/admin/view"},
	"workloadapi/admin/view":           nil,
	"examples/agent":                   nil,
	"examples/demo/vendor":             nil,
	"examples/sandbox/world":           nil,
	"credential":                       {"config", "credential/database", "credential/policy", "secret"},
	"credential/database":              {"config"},
	"credential/policy":                {"config"},
	"credential/brokers":               {"config", "credential", "credential/federation", "credential/fetched", "credential/github", "credential/none", "credential/oauth2", "credential/postgres", "credential/sshca", "credential/static", "credential/vault"},
	"credential/lease":                 {"config", "credential", "credential/lease/journal", "secret"},
	"credential/lease/journal":         {"credential", "state"},
	"credential/endpoint":              {"credential", "secret"},
	"credential/credentialtest":        {"config", "credential", "secret"},
	"credential/federation":            {"config", "credential", "credential/endpoint", "secret"},
	"credential/fetched":               {"config", "credential", "credential/endpoint", "credential/federation", "secret"},
	"credential/github":                {"config", "credential", "credential/endpoint", "secret"},
	"credential/githubtest":            {"credential/credentialtest"},
	"credential/none":                  {"config", "credential"},
	"credential/oauth2":                {"config", "credential", "credential/endpoint", "secret"},
	"credential/postgres":              {"config", "credential", "secret"},
	"credential/postgres/pgtest":       nil,
	"credential/sshagent":              nil,
	"credential/sshca":                 {"config", "credential", "secret"},
	"credential/sshca/sshdtest":        nil,
	"credential/sealed":                {"secret"},
	"credential/static":                {"config", "credential", "credential/sealed", "secret"},
	"credential/tool":                  {"credential", "secret"},
	"credential/vault":                 {"config", "credential", "credential/vault/server", "secret"},
	"credential/vault/server":          nil,
	"credential/oauth2/oauth2test":     nil,
	"credential/dotenv":                {"secret"},
	"inventory":                        {"inventory/text", "redact", "secret"},
	"inventory/inventorytest":          nil,
	"inventory/scan":                   {"inventory", "secret"},
	"inventory/text":                   nil,
}

// mayUse is which packages may import a module that belongs in one place.
var mayUse = map[string][]string{
	"google.golang.org/grpc":           {"workloadapi", "workloadapi/gate", "workloadapi/gate/gatetest", "workloadapi/credentialapi", "workloadapi/credentialapi/client", "workloadapi/credentialv1", "identity/spire", "identity/spire/spirev1", "identity/spire/spiretest", "spireplugin", "spireplugin/pluginv1"},
	"github.com/google/go-tpm":         {"attest/appraisal", "attest/node", "attest/node/tpmtest"},
	"github.com/google/go-attestation": {"attest/appraisal/bootlog"},
	"github.com/jackc/pgx":             {"workloadapi/proxy/databases", "cmd/vouchd/daemon/databasetest", "credential/postgres", "credential/postgres/pgtest", "cmd/vouchd/daemon/leasetest"},
	"github.com/openbao/openbao/api":   {"credential/vault", "credential/vault/server", "identity/vaultca"},
	"github.com/zitadel/oidc":          {"credential/oauth2/oauth2test"}, // tests alone
	"github.com/transparency-dev":      {"audit/witness/witnesstest"},
	"golang.org/x/crypto/ssh":          {"credential/sshagent", "credential/sshca", "inventory/inventorytest"},
}

const module = "github.com/vouchd/vouchd/"

type listed struct {
	ImportPath string
	Standard   bool
	Imports    []string
}

func TestPackagesImportOnlyWhatLiesBelowThem(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		if strings.HasPrefix(name, "cmd/") {
			continue // wires everything
		}
		for _, imported := range p.Imports {
			ours, ok := strings.CutPrefix(imported, module)
			if ok && !slices.Contains(mayImport[name], ours) {
				t.Errorf("%s imports %s, which the rules do not allow", name, ours)
			}
		}
	}
}

func TestAModuleOfOnePlaceIsUsedThereAlone(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		for _, imported := range p.Imports {
			for m, users := range mayUse {
				if (imported == m || strings.HasPrefix(imported, m+"/")) && !slices.Contains(users, name) {
					t.Errorf("%s imports %s, which belongs in %s", name, imported, strings.Join(users, ", "))
				}
			}
		}
	}
}

// opensDevices is which packages behind the verifier could open a device, a
// file or a socket, or import one that could. The verifier calls nothing of
// theirs that does.
var opensDevices = map[string]string{
	"github.com/google/go-tpm/tpm2":                       "commands and structures; a caller brings the connection",
	"github.com/google/go-tpm/legacy/tpm2/credactivation": "of go-attestation",
	"github.com/google/go-tpm/tpmutil":                    "encodes structures for go-tpm, beside opening TPMs",
	"github.com/google/go-tpm/legacy/tpm2":                "has the structures that tpm2 and go-attestation build on",
	"github.com/google/go-tpm/tpm2/transport":             "has the type of a connection that commands of tpm2 take",
	"github.com/fsnotify/fsnotify":                        "watches files for config, whose parser policies are read with",
	"github.com/fsnotify/fsnotify/internal":               "as fsnotify",
	"github.com/google/go-attestation/attest":             "reads event logs, beside opening TPMs",
	"golang.org/x/sys/unix":                               "of tpmutil and fsnotify",
	module + "config":                                     "watches files, beside parsing them",
}

// The verifier needs no TPM: it judges bytes. It opens nothing itself, and
// what it is built on cannot either, but for what opensDevices names.
func TestTheVerifierOpensNoDevice(t *testing.T) {
	const verifier = module + "attest/appraisal"
	opens := []string{"net", "net/http", "os", "os/exec", "syscall", "golang.org/x/sys/unix",
		"github.com/google/go-tpm/tpmutil", "github.com/google/go-tpm/legacy/tpm2", "github.com/google/go-tpm/tpm2/transport"}
	seen := make(map[string]bool)
	for _, p := range listPackages(t, "-deps", "./attest/appraisal") {
		seen[p.ImportPath] = true
		switch {
		case p.Standard:
			if p.ImportPath == "net/http" || p.ImportPath == "os/exec" {
				t.Errorf("%s is behind the verifier", p.ImportPath)
			}
			continue
		case p.ImportPath == module+"attest/node" || strings.HasPrefix(p.ImportPath, "github.com/google/go-tpm/tpm2/transport/"):
			t.Errorf("%s opens a TPM and is behind the verifier", p.ImportPath)
		case opensDevices[p.ImportPath] != "":
			continue
		}
		for _, imported := range p.Imports {
			if slices.Contains(opens, imported) {
				t.Errorf("%s imports %s and is behind the verifier", p.ImportPath, imported)
			}
		}
	}
	if !seen[verifier] {
		t.Errorf("go list does not name %s", verifier)
	}
	for p := range opensDevices {
		if !seen[p] {
			t.Errorf("%s is not behind the verifier; remove it from opensDevices", p)
		}
	}
}

// An agent that leases credentials links gRPC, and nothing of the daemon.
func TestClientOfTheCredentialAPILinksNothingOfTheDaemon(t *testing.T) {
	linksOnly(t, "workloadapi/credentialapi/client", "secret", "workloadapi/credentialv1")
}

func TestClientOfTheAdminSocketLinksNothingOfTheDaemon(t *testing.T) {
	linksOnly(t, "workloadapi/admin/client", "secret", "workloadapi/admin/view")
}

// linksOnly checks what is behind a package: of ours, allowed alone; of others,
// neither D-Bus nor anything that opens a TPM or parses YAML.
func linksOnly(t *testing.T, name string, allowed ...string) {
	t.Helper()
	for _, p := range listPackages(t, "-deps", "./"+name) {
		ours, ok := strings.CutPrefix(p.ImportPath, module)
		if ok && ours != name && !slices.Contains(allowed, ours) {
			t.Errorf("%s links %s", name, ours)
		}
		for _, foreign := range []string{"github.com/godbus", "github.com/google/go-tpm", "go.yaml.in"} {
			if strings.HasPrefix(p.ImportPath, foreign) {
				t.Errorf("%s links %s", name, p.ImportPath)
			}
		}
	}
}

// The log's reader opens no TPM, reaches no network and cannot write a log, and
// nothing behind it can.
func TestLogReaderNeedsNoDeviceNoNetworkAndNoWriter(t *testing.T) {
	linksOnly(t, "audit/reader", mayImport["audit/reader"]...)
	for _, p := range listPackages(t, "-deps", "./audit/reader") {
		if p.ImportPath == "net/http" {
			t.Error("audit/reader links net/http")
		}
		if !p.Standard && slices.Contains(p.Imports, "net") { // crypto/x509 does, for its types
			t.Errorf("%s imports net and is behind audit/reader", p.ImportPath)
		}
	}
}

// What an administrator or an agent runs asks the daemon, and is no part of it.
func TestCommandLineLinksNoServer(t *testing.T) {
	clients := []string{"/admin/client", "/admin/view", "/credentialapi/client", "/credentialv1", "/proxy/relay"}
	for _, p := range listPackages(t, "-deps", "./cmd/vouch") {
		if ours, ok := strings.CutPrefix(p.ImportPath, module+"workloadapi"); ok && !slices.Contains(clients, ours) {
			t.Errorf("cmd/vouch links workloadapi%s", ours)
		}
	}
}

func TestEveryPackageIsInTheRules(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		if _, ok := mayImport[name]; !ok && !strings.HasPrefix(name, "cmd/") && name+"/" != module {
			t.Errorf("%s is a package that rules_test.go does not know", name)
		}
	}
}

func packages(t *testing.T) []listed {
	t.Helper()
	return listPackages(t, "./...")
}

func listPackages(t *testing.T, args ...string) []listed {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Standard,Imports"}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var ps []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
	if len(ps) == 0 {
		t.Fatal("go list names no package")
	}
	return ps
}

// What ships holds no module that nobody has looked at, however it came in.
func TestShippedProgramsHoldAllowedModulesAlone(t *testing.T) {
	text, err := os.ReadFile("packaging/inventory/modules.allowed")
	if err != nil {
		t.Fatal(err)
	}
	var allowed []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			allowed = append(allowed, line)
		}
	}
	out, err := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}", "./cmd/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	shipped := strings.Fields(string(out))
	slices.Sort(shipped)
	shipped = slices.Compact(shipped)
	for _, m := range shipped {
		if !slices.Contains(allowed, m) {
			t.Errorf("module %s ships and is not in packaging/inventory/modules.allowed; look at it before you add it", m)
		}
	}
	for _, m := range allowed {
		if !slices.Contains(shipped, m) {
			t.Errorf("module %s does not ship any more; remove it from packaging/inventory/modules.allowed", m)
		}
	}
}
