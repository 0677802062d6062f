package appraisal

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/vouchd/vouchd/attest/appraisal/bootlog"
)

func TestIMALists(t *testing.T) {
	t.Parallel()
	list := readFile(t, "testdata/uki-secureboot/ima_binary_runtime_measurements")
	pcr := recordedPCRs(t, "uki-secureboot")[imaPCR]
	replay := func(list []byte) ([]imaEntry, error) {
		entries, err := parseIMA(list)
		if err != nil {
			return nil, err
		}
		return replayIMA(entries, pcr)
	}
	all, err := parseIMA(list)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := replay(list)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != len(all)-1 {
		t.Errorf("%d of %d entries are proven, want all but the last", len(entries), len(all))
	}
	if e := entries[0]; e.path != "boot_aggregate" || !strings.HasPrefix(e.digest, "sha256:") {
		t.Errorf("first entry is %s %s", e.path, e.digest)
	}
	cut := make([]int, 0, 64) // every cut in the first two entries
	for i := 1; i < 64; i++ {
		cut = append(cut, i)
	}
	for _, i := range append(cut, len(list)/2, len(list)-1) {
		if _, err := replay(list[:i]); err == nil {
			t.Errorf("cut at %d: accepted", i)
		}
	}
	for i := range 300 {
		if _, err := replay(flip(list, i)); err == nil {
			t.Errorf("byte %d changed: accepted", i)
		}
	}
	swapped := bytes.Clone(list)
	if _, err := replay(swapped[entryLen(t, swapped):]); !errors.Is(err, ErrIMA) {
		t.Errorf("without its first entry: %v, want %v", err, ErrIMA)
	}
	if _, err := replay(nil); !errors.Is(err, ErrIMA) {
		t.Errorf("no list: %v, want %v", err, ErrIMA)
	}
}

func entryLen(t *testing.T, list []byte) int {
	t.Helper()
	r := imaReader(list)
	if _, err := r.entry(); err != nil {
		t.Fatal(err)
	}
	return len(list) - len(r)
}

// A file that was open for writing while it ran was not measured for certain.
func TestUnknownDigestIsNotAllowedAndMayBeForbidden(t *testing.T) {
	t.Parallel()
	entries, err := parseIMA(readFile(t, "testdata/uki-secureboot/ima_binary_runtime_measurements"))
	if err != nil {
		t.Fatal(err)
	}
	e := entries[2]
	p := imaPattern{Path: e.path, SHA256: []digest{digest(strings.TrimPrefix(e.digest, "sha256:"))}}
	other := imaPattern{Path: e.path, SHA256: []digest{other}}
	allow, forbid := IMARule{Allow: []imaPattern{p}}, IMARule{Forbid: []imaPattern{other}}
	if err := errors.Join(allow.judge([]imaEntry{e}), forbid.judge([]imaEntry{e})); err != nil {
		t.Fatalf("as it is: %v", err)
	}
	for name, change := range map[string]func(*imaEntry){
		"open for writing":         func(e *imaEntry) { e.violation = true },
		"hashed in another manner": func(e *imaEntry) { e.digest = "sha1:" + e.digest },
	} {
		changed := e
		change(&changed)
		if err := allow.judge([]imaEntry{changed}); err == nil {
			t.Errorf("%s: allowed", name)
		}
		if err := forbid.judge([]imaEntry{changed}); err == nil {
			t.Errorf("%s: not forbidden, though it may be the forbidden one", name)
		}
	}
}

func TestPolicyErrors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ text, says string }{
		{"pcrs: ['24:" + other + "']", "PCR"},
		{"pcrs: ['07:" + other + "']", "PCR"},
		{"pcrs: ['7:abc']", "digest"},
		{"pcrs: ['7']", "colon"},
		{"pcr: []", "unknown key"},
		{"endorsement: {keys: [abc]}", "64"},
		{"endorsement: {roots: ['not a certificate']}", "PEM"},
		{"endorsement: {activation: never}", "activation"},
		{"kernel_command_line: {allow: ['(']}", "regular expression"},
		{"ima: {allow: [{sha256: []}]}", "path"},
		{"boot_state: none", "boot_state"},
		{"secure_boot: {required: 1}", "true or false"},
		{"allow_sha1: yes please", "true or false"},
	} {
		_, err := ParsePolicy("policy.yaml", []byte(tt.text))
		if err == nil || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), "policy.yaml:1") {
			t.Errorf("%s: error %v does not name the line and %q", tt.text, err, tt.says)
		}
	}
}

func TestLearnedPolicyQuotesWhatTheHostSays(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"plain", `a "quoted" \ one`, "two\nlines: x", "ümläut\x00\x7f", "- {x: y}"} {
		p, err := ParsePolicy("p", []byte(fmt.Sprintf("ima: {allow: [{path: %s}]}", quoted(s))))
		if err != nil || len(p.IMA.Allow) != 1 || p.IMA.Allow[0].Path != s {
			t.Errorf("%q came back as %+v, %v", s, p.IMA.Allow, err)
		}
	}
}

func TestSecureBootKeysAreJudged(t *testing.T) {
	t.Parallel()
	named := SecureBootRule{Keys: []digest{other}}
	for _, tt := range []struct {
		name string
		rule SecureBootRule
		is   bootlog.SecureBoot
		want bool
	}{
		{"the key that is named", named, bootlog.SecureBoot{On: true, Authorities: []string{other}}, true},
		{"another key besides", named, bootlog.SecureBoot{On: true, Authorities: []string{other, "cd"}}, false},
		{"no key", named, bootlog.SecureBoot{On: true}, false},
		{"digests that may boot without a key", named, bootlog.SecureBoot{On: true, Authorities: []string{other}, Hashes: true}, false},
		{"any key where none is named", SecureBootRule{Required: true}, bootlog.SecureBoot{On: true, Authorities: []string{"cd"}, Hashes: true}, true},
		{"off", SecureBootRule{Required: true}, bootlog.SecureBoot{}, false},
	} {
		if err := tt.rule.judge(tt.is); (err == nil) != tt.want {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// other is a digest of nothing that is around.
const other = "abababababababababababababababababababababababababababababababab"

// recordedPCRs reads the values that the kernel showed at the time.
func recordedPCRs(t testing.TB, recording string) map[uint]Hex {
	t.Helper()
	pcrs := make(map[uint]Hex)
	for line := range strings.Lines(string(readFile(t, filepath.Join("testdata", recording, "pcrs-sysfs.txt")))) {
		var bank, value string
		var pcr uint
		if _, err := fmt.Sscan(line, &bank, &pcr, &value); err != nil {
			t.Fatal(err)
		}
		if bank == BankSHA256 {
			b, err := hex.DecodeString(value)
			if err != nil {
				t.Fatal(err)
			}
			pcrs[pcr] = b
		}
	}
	return pcrs
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func signedBy(t *testing.T, key *ecdsa.PrivateKey, text []byte) Signed {
	t.Helper()
	digest := sha256.Sum256(text)
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return Signed{Attested: text, Signature: tpm2.Marshal(tpm2.TPMTSignature{
		SigAlg: tpm2.TPMAlgECDSA,
		Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash:       tpm2.TPMAlgSHA256,
			SignatureR: tpm2.TPM2BECCParameter{Buffer: r.FillBytes(make([]byte, 32))},
			SignatureS: tpm2.TPM2BECCParameter{Buffer: s.FillBytes(make([]byte, 32))},
		}),
	})}
}

func flip(b []byte, i int) []byte {
	b = bytes.Clone(b)
	b[i] ^= 1
	return b
}
