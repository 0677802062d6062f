package main

import (
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

func TestDaemonWithoutTheCapabilityToSeeOthersSaysSo(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Wrap = []string{"setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"}
	h.StartProcess()
	if out, _, code := h.Vouch("doctor"); code != 1 || !strings.Contains(out, "lacks CAP_SYS_PTRACE and cannot see the programs of other users; start it with CAP_SYS_PTRACE, as vouchd.service does") {
		t.Errorf("vouch doctor exits %d: %s", code, out)
	}
}

func TestDoctorTellsWhetherTheTPMHasACertificate(t *testing.T) {
	t.Parallel()
	without, with := newHost(t), newHost(t)
	without.TPM.Do(removeCertificates)
	without.Start()
	with.Start()
	const note = "endorsement key: the TPM has no usable manufacturer's certificate"
	if out, _, _ := without.Vouch("doctor"); !strings.Contains(out, note) {
		t.Errorf("without a certificate: %s", out)
	}
	if out, _, _ := with.Vouch("doctor"); strings.Contains(out, note) {
		t.Errorf("with a certificate: %s", out)
	}
}

func TestOddObjectInTheTPMIsNamed(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.TPM.Do(func(tr transport.TPM) error {
		_, err := tpm2.NVDefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
				NVIndex: 0x01c00100, NameAlg: tpm2.TPMAlgSHA256, DataSize: 10,
				Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, NoDA: true},
			}),
		}.Execute(tr)
		return err
	})
	h.Start()
	const object = "certificate in NV index 0x1c00100: it was never written"
	if out, _, _ := h.Vouch("doctor"); !strings.Contains(out, "TPM: ignored "+object) {
		t.Errorf("vouch doctor: %s", out)
	}
	for _, format := range []string{"text", "json"} {
		if out, _, _ := h.Vouch("status", "--output", format); !strings.Contains(out, object) {
			t.Errorf("vouch status in %s: %s", format, out)
		}
	}
}

// removeCertificates leaves a TPM as clouds and some makers deliver it.
func removeCertificates(tr transport.TPM) error {
	for index := tpm2.TPMHandle(0x01c00000); index < 0x01c00020; index++ {
		r, err := tpm2.NVReadPublic{NVIndex: index}.Execute(tr)
		if err != nil {
			continue
		}
		_, err = tpm2.NVUndefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: r.NVName},
		}.Execute(tr)
		if err != nil {
			return err
		}
	}
	return nil
}
