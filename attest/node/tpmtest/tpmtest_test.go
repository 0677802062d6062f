package tpmtest

import (
	"bytes"
	"os"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

func TestARestartedTPMStartsItsPCRsOver(t *testing.T) {
	t.Parallel()
	tpm := Start(t)
	fresh := pcr(t, tpm, 4)
	tpm.Extend(4, "another boot loader")
	if bytes.Equal(pcr(t, tpm, 4), fresh) {
		t.Fatal("extending PCR 4 did not change it")
	}
	tpm.Restart()
	if !bytes.Equal(pcr(t, tpm, 4), fresh) {
		t.Fatal("PCR 4 survived a restart")
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	var dir string
	t.Run("a test with a TPM", func(t *testing.T) { dir = Start(t).dir })
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("directory %s is still there: %v", dir, err)
	}
}

func pcr(t *testing.T, tpm *TPM, n uint) []byte {
	t.Helper()
	var digest []byte
	tpm.Do(func(tr transport.TPM) error {
		r, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
			{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(n)},
		}}}.Execute(tr)
		if err != nil {
			return err
		}
		digest = r.PCRValues.Digests[0].Buffer
		return nil
	})
	return digest
}
