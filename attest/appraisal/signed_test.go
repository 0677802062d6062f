package appraisal

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

// tool runs a program of tpm2-tools on a TPM.
func tool(t *testing.T, real *tpmtest.TPM, name string, args ...string) {
	t.Helper()
	if err := runTool(real, name, args...); err != nil {
		t.Fatal(err)
	}
}

func runTool(real *tpmtest.TPM, name string, args ...string) error {
	if real != nil {
		args = append([]string{"--tcti", real.TCTI}, args...)
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return errors.New(name + " (Debian package tpm2-tools): " + err.Error() + "\n" + string(out))
	}
	return nil
}

func TestWeAcceptOtherToolsQuotes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, algorithm, scheme string }{
		{"ECDSA", "ecc", "ecdsa"}, {"RSASSA", "rsa", "rsassa"}, {"RSAPSS", "rsa", "rsapss"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			real := tpmtest.Start(t)
			real.Extend(4, "a boot loader")
			dir := t.TempDir()
			at := func(name string) string { return filepath.Join(dir, name) }
			flush := func() { tool(t, real, "tpm2_flushcontext", "-t") } // there is no resource manager
			tool(t, real, "tpm2_createek", "-c", at("ek"), "-G", "rsa")
			flush()
			tool(t, real, "tpm2_createak", "-C", at("ek"), "-c", at("ak"), "-G", tt.algorithm, "-g", "sha256", "-s", tt.scheme, "-u", at("public"))
			flush()
			data := sha256.Sum256([]byte("nonce"))
			tool(t, real, "tpm2_quote", "-c", at("ak"), "-l", "sha256:0,1,2,3,4,5,6,7,8,9,11,12,13,14,15",
				"-q", hex.EncodeToString(data[:]), "-g", "sha256", "--scheme", tt.scheme, "-m", at("quote"), "-s", at("signature"))

			public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](readFile(t, at("public")))
			if err != nil {
				t.Fatal(err)
			}
			area, err := public.Contents()
			if err != nil {
				t.Fatal(err)
			}
			key, err := tpm2.Pub(*area)
			if err != nil {
				t.Fatal(err)
			}
			s := Signed{Attested: readFile(t, at("quote")), Signature: readFile(t, at("signature"))}
			a, err := s.verify(key, tpm2.TPMSTAttestQuote, data[:])
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ReadBootState(a); err != nil {
				t.Error(err)
			}
			if _, err := s.verify(key, tpm2.TPMSTAttestQuote, nil); !errors.Is(err, ErrNonce) {
				t.Errorf("without the nonce: %v, want %v", err, ErrNonce)
			}
			s.Attested = flip(s.Attested, 70)
			if _, err := s.verify(key, tpm2.TPMSTAttestQuote, data[:]); !errors.Is(err, ErrSignature) {
				t.Errorf("changed: %v, want %v", err, ErrSignature)
			}
		})
	}
}

// A key in software with the AK's public area signs whatever it likes, so
// everything rests on the magic value that the TPM refuses to sign for others
// and, beyond that, on knowing the AK.
func TestStructuresThatNoTPMMadeAreRefused(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text := append([]byte{0xff, 0x54, 0x43, 0x48}, bytes.Repeat([]byte{0}, 100)...) // one off the magic
	if _, err := signedBy(t, key, text).verify(&key.PublicKey, tpm2.TPMSTAttestQuote, nil); !errors.Is(err, ErrNotTPMMade) {
		t.Errorf("verify = %v, want %v", err, ErrNotTPMMade)
	}
	if _, err := signedBy(t, key, nil).verify(&key.PublicKey, tpm2.TPMSTAttestQuote, nil); !errors.Is(err, ErrNotTPMMade) {
		t.Errorf("verify of nothing = %v, want %v", err, ErrNotTPMMade)
	}
}
