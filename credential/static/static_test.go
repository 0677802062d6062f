package static_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/static"
	"github.com/vouchd/vouchd/credential/vault"
)

func load(t *testing.T, text string) (*credential.Definitions, error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte("credentials:\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	return credential.LoadDefinitions(dir, credential.Brokers{"static": static.Opener(nil), "vault": vault.Open}, true)
}

func TestSecretIsProxyOnlyUnlessItsDefinitionSaysOtherwise(t *testing.T) {
	t.Parallel()
	defs, err := load(t, `
  - {name: a, broker: static, static: {secret: key}}
  - {name: b, broker: static, static: {disclosable: false}}
  - {name: c, broker: static, static: {disclosable: true}}
`)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]credential.Traits{
		"a": {Upstream: "sealed:key", Secret: "key", Revocation: credential.Unrevocable, ProxyOnly: true},
		"b": {Upstream: "sealed:b", Secret: "b", Revocation: credential.Unrevocable, ProxyOnly: true},
		"c": {Upstream: "sealed:c", Secret: "c", Revocation: credential.Unrevocable},
	} {
		d, _ := defs.Get(name)
		if d.Traits != want {
			t.Errorf("%s has %+v, want %+v", name, d.Traits, want)
		}
	}
}

func TestDefinitionsThatCannotBeAreRefusedWithTheirLine(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"  - {name: a, broker: static, static: {secret: ../key}}":                           `a.yaml:2: secret "../key"`,
		"  - {name: a, broker: static, static: {disclosable: perhaps}}":                     "disclosable must be true or false",
		"  - {name: a, broker: static, static: {value: sk_live}}":                           `unknown key "value"`,
		"  - {name: a, broker: static}":                                                     "has no settings",
		"  - {name: a, broker: static, renewable: true, static: {secret: key}}":             "is renewable, which sealed:key cannot do",
		"  - {name: a, broker: static, vault: {path: x}, static: {secret: key}}":            "has broker static and settings for vault",
		"  - {name: a, broker: static, static: {secret: key, secret: other}}":               "secret",
		"  - {name: a, broker: static, static: {secret: " + strings.Repeat("k", 129) + "}}": "cannot be sealed",
	} {
		if _, err := load(t, text+"\n"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
