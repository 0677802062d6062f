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
	"state":                        nil,
	"secret":                       nil,
	"config":                       nil,
	"attest":                       nil,
	"audit":                        nil,
	"audit/export":                 {"audit"},
	"audit/witness":                {"audit"},
	"audit/witness/witnesstest":    nil,
	"systemd":                      nil,
	"packaging/version":            nil,
	"packaging/inventory":          nil,
	"packaging/manual":             nil,
	"attest/node":                  {"attest", "secret", "config"},
	"attest/node/tpmtest":          nil,
	"attest/process":               {"attest", "systemd"},
	"programs":                     {"attest/process", "config", "systemd"},
	"identity":                     {"attest", "config", "secret"},
	"workloadapi":                  {"attest", "attest/process", "audit", "config", "credential", "credential/sealed", "identity", "secret", "systemd", "workloadapi/credentialv1"},
	"workloadapi/credentialv1":     nil,
	"examples/agent":               nil,
	"credential":                   {"config", "secret"},
	"credential/brokers":           {"credential", "credential/federation", "credential/fetched", "credential/github", "credential/oauth2", "credential/postgres", "credential/sshca", "credential/static", "credential/vault"},
	"credential/endpoint":          {"credential", "secret"},
	"credential/credentialtest":    {"config", "credential", "secret"},
	"credential/federation":        {"config", "credential", "credential/endpoint", "secret"},
	"credential/fetched":           {"config", "credential", "credential/endpoint", "credential/federation", "secret"},
	"credential/github":            {"config", "credential", "credential/endpoint", "secret"},
	"credential/githubtest":        {"credential/credentialtest"},
	"credential/oauth2":            {"config", "credential", "credential/endpoint", "secret"},
	"credential/postgres":          {"config", "credential", "secret"},
	"credential/postgres/pgtest":   nil,
	"credential/sshagent":          nil,
	"credential/sshca":             {"config", "credential", "secret"},
	"credential/sshca/sshdtest":    nil,
	"credential/sealed":            {"secret"},
	"credential/static":            {"config", "credential", "credential/sealed", "secret"},
	"credential/tool":              {"credential", "secret"},
	"credential/vault":             {"config", "credential", "secret"},
	"credential/oauth2/oauth2test": nil,
	"credential/dotenv":            {"secret"},
}

// mayUse is which packages may import a module that belongs in one place.
var mayUse = map[string][]string{
	"google.golang.org/grpc":           {"workloadapi", "workloadapi/credentialv1"},
	"github.com/google/go-tpm":         {"attest/node", "attest/node/tpmtest"},
	"github.com/google/go-attestation": {"attest/node"},
	"github.com/jackc/pgx":             {"credential/postgres", "credential/postgres/pgtest"},
	"github.com/openbao/openbao/api":   {"credential/vault"},
	"github.com/zitadel/oidc":          {"credential/oauth2/oauth2test"}, // tests alone
	"github.com/transparency-dev":      {"audit/witness/witnesstest"},
	"golang.org/x/crypto/ssh":          {"credential/sshagent", "credential/sshca"},
}

const module = "github.com/vouchd/vouchd/"

type listed struct {
	ImportPath string
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
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
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
