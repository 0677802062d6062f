package node

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"os"
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

func TestOtherToolsAcceptOurQuotes(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	n := load(t, tpm, store(t))
	real.Extend(4, "a boot loader")
	data := sha256.Sum256([]byte("nonce"))
	q := quoteOf(t, n, tpm2.TPMAlgSHA256, bootPCRs, data[:])

	dir := t.TempDir()
	ak, err := p256(&n.ak)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(ak)
	if err != nil {
		t.Fatal(err)
	}
	in := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	args := []string{
		"-u", in("ak.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})),
		"-m", in("quote", q.Attested), "-s", in("signature", q.Signature), "-g", "sha256",
	}
	good := append(args, "-q", hex.EncodeToString(data[:]))
	if err := runTool(nil, "tpm2_checkquote", good...); err != nil {
		t.Error(err)
	}
	other := append(args[:len(args):len(args)], "-q", hex.EncodeToString(make([]byte, 32)))
	if err := runTool(nil, "tpm2_checkquote", other...); err == nil {
		t.Error("tpm2_checkquote accepts our quote for another nonce")
	}
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
			s := signed{Attested: readFile(t, at("quote")), Signature: readFile(t, at("signature"))}
			a, err := s.verify(key, tpm2.TPMSTAttestQuote, data[:])
			if err != nil {
				t.Fatal(err)
			}
			if _, err := bootState(a); err != nil {
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
