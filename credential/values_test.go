package credential

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/secret"
	"github.com/vouchd/vouchd/state"
)

// canary is in every secret of these tests.
const canary = "canary-4f1b"

// machine is a sealer that stands for the TPM of one machine.
type machine byte

func (m machine) Seal(_ context.Context, label string, secret []byte) ([]byte, error) {
	return m.gcm().Seal(nil, make([]byte, 12), secret, []byte(label)), nil
}

func (m machine) Unseal(_ context.Context, label string, blob []byte) ([]byte, error) {
	return m.gcm().Open(nil, make([]byte, 12), blob, []byte(label))
}

func (m machine) gcm() cipher.AEAD {
	block, err := aes.NewCipher(bytes.Repeat([]byte{byte(m)}, 32))
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return aead
}

func TestWindow(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, window, at, ends string // "" for outside
	}{
		{"a working day", "mon-fri 08:00-18:00", "2026-11-23T12:00:00Z", "2026-11-23T18:00:00Z"},
		{"its first minute", "mon-fri 08:00-18:00", "2026-11-23T08:00:00Z", "2026-11-23T18:00:00Z"},
		{"the minute before", "mon-fri 08:00-18:00", "2026-11-23T07:59:59Z", ""},
		{"the minute it ends", "mon-fri 08:00-18:00", "2026-11-23T18:00:00Z", ""},
		{"the weekend", "mon-fri 08:00-18:00", "2026-11-22T12:00:00Z", ""},
		{"days over the end of the week", "sat-mon 00:00-24:00", "2026-11-22T23:59:59Z", "2026-11-23T00:00:00Z"},
		{"single days", "tue,thu 00:00-24:00", "2026-11-23T12:00:00Z", ""},
		{"another zone", "mon 08:00-18:00 Europe/Berlin", "2026-11-23T07:30:00Z", "2026-11-23T17:00:00Z"},
		{"another zone's day", "mon 00:00-01:00 Europe/Berlin", "2026-11-22T23:30:00Z", "2026-11-23T00:00:00Z"},
		{"an hour that comes twice, first", "sun 02:00-02:30 Europe/Berlin", "2026-10-25T00:15:00Z", "2026-10-25T00:30:00Z"},
		{"an hour that comes twice, between", "sun 02:00-02:30 Europe/Berlin", "2026-10-25T00:45:00Z", ""},
		{"an hour that comes twice, then", "sun 02:00-02:30 Europe/Berlin", "2026-10-25T01:15:00Z", "2026-10-25T01:30:00Z"},
		{"over an hour that comes twice", "sun 01:00-04:00 Europe/Berlin", "2026-10-24T23:30:00Z", "2026-10-25T03:00:00Z"},
		{"over an hour that is left out", "sun 01:00-04:00 Europe/Berlin", "2026-03-29T00:30:00Z", "2026-03-29T02:00:00Z"},
		{"up to an hour that is left out", "sun 01:00-02:30 Europe/Berlin", "2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z"},
		{"the day that has 25 hours", "sun 00:00-24:00 Europe/Berlin", "2026-10-25T12:00:00Z", "2026-10-25T23:00:00Z"},
	} {
		var w Window
		if err := w.UnmarshalText([]byte(tt.window)); err != nil {
			t.Fatal(err)
		}
		at, err := time.Parse(time.RFC3339, tt.at)
		if err != nil {
			t.Fatal(err)
		}
		end, ok := w.end(at)
		if ok != (tt.ends != "") || ok && end.UTC().Format(time.RFC3339) != tt.ends {
			t.Errorf("%s: %v, %v; want %q", tt.name, end.UTC(), ok, tt.ends)
		}
	}
}

func TestTemplatePutsQuotedValuesInAndNothingElse(t *testing.T) {
	t.Parallel()
	quote := func(verb, value string) (string, error) {
		if value == "bad" {
			return "", errors.New("is bad")
		}
		return "<" + verb + value + ">", nil
	}
	for _, tt := range []struct{ name, text, want string }{
		{"plain text", "a {b} }} c", "a {b} }} c"},
		{"values", "{{a}}-{{ verb b }}{{a}}", "<1>-<verb{{a}}><1>"},
	} {
		var tmpl Template
		if err := tmpl.UnmarshalText([]byte(tt.text)); err != nil {
			t.Fatal(err)
		}
		got, err := tmpl.Expand(map[string]string{"a": "1", "b": "{{a}}"}, quote)
		if err != nil || got != tt.want {
			t.Errorf("%s: %q, %v; want %q", tt.name, got, err, tt.want)
		}
	}
	for _, bad := range []string{"{{", "{{}}", "{{ }}", "{{a", "{{a b c}}", "{{A}}", "{{a-b}}", "{{a}} {{"} {
		var tmpl Template
		if err := tmpl.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is a template", bad)
		}
	}
	var tmpl Template
	if err := tmpl.UnmarshalText([]byte("{{a}}")); err != nil {
		t.Fatal(err)
	}
	for name, values := range map[string]map[string]string{"no value": {}, "a value that cannot be quoted": {"a": "bad"}} {
		if got, err := tmpl.Expand(values, quote); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestReadSecretWantsAFileThatNobodyElseCanRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for text, want := range map[string]string{"a b\n": "a b", "a\r\n": "a", "a\n\n": "a\n", "\x00\xff": "\x00\xff"} {
		if got, err := ReadSecret(write("good", text, 0o600)); err != nil || string(got.Reveal()) != want {
			t.Errorf("%q is read as %q, %v", text, got.Reveal(), err)
		}
	}
	for name, path := range map[string]string{
		"readable by the group": write("group", canary, 0o640),
		"readable by all":       write("all", canary, 0o604),
		"empty":                 write("empty", "\n", 0o600),
		"too large":             write("large", strings.Repeat("x", maxSecretFile+10), 0o600),
		"a directory":           dir,
		"missing":               filepath.Join(dir, "none"),
	} {
		if _, err := ReadSecret(path); err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if os.Geteuid() == 0 {
		path := write("other", canary, 0o600)
		if err := os.Chown(path, 65534, -1); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadSecret(path); err == nil {
			t.Error("a file of another user's was read")
		}
	}
}

func TestSecretsAreKeptForThisMachineUnderTheirName(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state")
	dir, err := state.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	s := NewSecrets(dir, machine(1))
	if _, err := s.Load(t.Context(), "one"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing kept: %v", err)
	}
	for _, value := range []string{canary, strings.Repeat(canary, 1000)} { // more than a TPM seals
		if err := s.Save(t.Context(), "one", secret.Of([]byte(value))); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Load(t.Context(), "one"); err != nil || string(got.Reveal()) != value {
			t.Errorf("kept %d bytes, %v", got.Len(), err)
		}
	}
	if _, err := NewSecrets(dir, machine(2)).Load(t.Context(), "one"); err == nil {
		t.Error("another machine reads it")
	}
	b, err := os.ReadFile(filepath.Join(path, "credential-one"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), canary) {
		t.Error("it is kept in clear")
	}
	kept, _, err := dir.Load("credential-one", secretsVersion)
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.Save("credential-two", secretsVersion, kept); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(t.Context(), "two"); err == nil {
		t.Error("it is read under another name")
	}
}
