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

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

// runTool runs a program of tpm2-tools, on a TPM if there is one.
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
	q := quoteOf(t, n, tpm2.TPMAlgSHA256, appraisal.BootPCRs, data[:])

	dir := t.TempDir()
	ak, err := appraisal.P256(&n.ak)
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
