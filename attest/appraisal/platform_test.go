package appraisal_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

// A cloud's vTPM may have a certified attestation key and no endorsement
// certificate.
func TestPlatformsThatCertifyAnAttestationKey(t *testing.T) {
	t.Parallel()
	for name, kind := range map[string]cloud{
		"Azure":       {certificate: 0x01c101d0, handle: 0x81000003, key: rsaAK()},
		"Google, ECC": {certificate: 0x01c10002, template: 0x01c10003, key: appraisal.AKTemplate()},
		"Google, RSA": {certificate: 0x01c10000, template: 0x01c10001, key: rsaAK()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			real := tpmtest.Start(t)
			root, _ := kind.equip(t, real)
			m := booted(t, "uki-secureboot", real)
			e, given := m.evidence(t)
			given.Activation = nil // there is no endorsement key that anybody certified
			p := policy(t, "endorsement:\n  platform_roots:\n"+yamlPEM(root)+"boot_state: any\n")
			r := appraisal.Appraise(e, p, given)
			if !r.Passed || r.EKSHA256 != "" {
				t.Errorf("%v", r)
			}
			named := policy(t, "endorsement:\n  keys: ["+r.PlatformAKSHA256+"]\nboot_state: any\n")
			if r := appraisal.Appraise(e, named, given); !r.Passed {
				t.Errorf("by its key: %v", r)
			}
			if left := real.Handles(); len(left) > 0 {
				t.Errorf("handles %x are left", left)
			}
		})
	}
}

func TestForgedPlatformKeysAreRefused(t *testing.T) {
	t.Parallel()
	azure := cloud{certificate: 0x01c101d0, handle: 0x81000003, key: rsaAK()}
	real, otherTPM := tpmtest.Start(t), tpmtest.StartManufactured(t)
	root, otherKeys := azure.equip(t, real)
	azure.equip(t, otherTPM)
	m := booted(t, "uki-secureboot", real)
	e, given := m.evidence(t)
	given.Activation = nil
	othersEvidence, _ := booted(t, "uki-secureboot", otherTPM).evidence(t)
	var good, others appraisal.Evidence
	for into, from := range map[*appraisal.Evidence][]byte{&good: e, &others: othersEvidence} {
		if err := json.Unmarshal(from, into); err != nil {
			t.Fatal(err)
		}
	}
	p := policy(t, "endorsement:\n  platform_roots:\n"+yamlPEM(root)+"boot_state: any\n")
	for name, forge := range map[string]func(*appraisal.Evidence){
		"another machine's certification": func(e *appraisal.Evidence) { e.Platform.Certified = others.Platform.Certified },
		"another machine's certificate":   func(e *appraisal.Evidence) { e.Platform.Certificates = others.Platform.Certificates },
		"another machine's platform key":  func(e *appraisal.Evidence) { e.Platform = others.Platform },
		"another key's certificate":       func(e *appraisal.Evidence) { e.Platform.Certificates = [][]byte{otherKeys} },
		"no certificate":                  func(e *appraisal.Evidence) { e.Platform.Certificates = nil },
		"no platform key":                 func(e *appraisal.Evidence) { e.Platform = nil },
	} {
		t.Run(name, func(t *testing.T) {
			f := clone(t, good)
			forge(&f)
			refused(t, appraisal.Appraise(encode(t, f), p, given), "endorsement", nil)
			refused(t, appraisal.Appraise(encode(t, f), policy(t, "endorsement:\n  keys: ["+other+"]\nboot_state: any\n"), given), "endorsement", nil)
		})
	}
	t.Run("another machine's certification, by key", func(t *testing.T) {
		f := clone(t, good)
		f.Platform.Certified = others.Platform.Certified
		named := policy(t, "endorsement:\n  keys: ["+appraisal.Appraise(e, p, given).PlatformAKSHA256+"]\nboot_state: any\n")
		refused(t, appraisal.Appraise(encode(t, f), named, given), "endorsement", nil)
	})
	t.Run("a platform key that signs anything", func(t *testing.T) {
		weak := azure
		weak.key.ObjectAttributes.Restricted = false
		real := tpmtest.Start(t)
		root, _ := weak.equip(t, real)
		e, given := booted(t, "uki-secureboot", real).evidence(t)
		p := policy(t, "endorsement:\n  platform_roots:\n"+yamlPEM(root)+"boot_state: any\n")
		refused(t, appraisal.Appraise(e, p, given), "endorsement", appraisal.ErrAK)
	})
}

// Another user of the TPM can put a key in the place of the cloud's. A fleet's policy that
// accepts either kind of machine accepts this one by its endorsement key.
func TestUnacceptedPlatformKeyHidesNoEndorsementKey(t *testing.T) {
	t.Parallel()
	real := tpmtest.Start(t)
	cloud{certificate: 0x01c10002, template: 0x01c10003, key: appraisal.AKTemplate()}.equip(t, real)
	m := booted(t, "uki-secureboot", real)
	e, given := m.evidence(t)
	roots := "  platform_roots:\n" + yamlPEM(real.CA[0].Raw) + "boot_state: any\n"
	r := appraisal.Appraise(e, policy(t, "endorsement:\n  keys: ["+m.EKSHA256()+"]\n"+roots), given)
	if !r.Passed || r.EKSHA256 != m.EKSHA256() || r.PlatformAKSHA256 != "" {
		t.Errorf("%v", r)
	}
	refused(t, appraisal.Appraise(e, policy(t, "endorsement:\n  keys: ["+other+"]\n"+roots), given), "endorsement", appraisal.ErrCertificate)
	given.Activation = nil
	refused(t, appraisal.Appraise(e, policy(t, "endorsement:\n  keys: ["+m.EKSHA256()+"]\n"+roots), given), "activation", appraisal.ErrActivation)
}

func rsaAK() tpm2.TPMTPublic {
	ak := appraisal.AKTemplate()
	ak.Type = tpm2.TPMAlgRSA
	ak.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
		Scheme: tpm2.TPMTRSAScheme{
			Scheme:  tpm2.TPMAlgRSASSA,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256}),
		},
		KeyBits: 2048,
	})
	ak.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	return ak
}

// A cloud is where one of them keeps the key and its certificate.
type cloud struct {
	certificate, handle, template tpm2.TPMHandle
	key                           tpm2.TPMTPublic
}

// equip equips a TPM as the cloud does and returns its root, and a certificate
// that the same root issued for another key.
func (c cloud) equip(t *testing.T, real *tpmtest.TPM) (root, others []byte) {
	t.Helper()
	ca, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cloud"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0), KeyUsage: x509.KeyUsageCertSign,
	}
	if root, err = x509.CreateCertificate(rand.Reader, template, template, &ca.PublicKey, ca); err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0)}
	if others, err = x509.CreateCertificate(rand.Reader, leaf, template, &ca.PublicKey, ca); err != nil {
		t.Fatal(err)
	}
	real.Do(func(tr transport.TPM) error {
		r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(c.key)}.Execute(tr)
		if err != nil {
			return err
		}
		public, err := r.OutPublic.Contents()
		if err != nil {
			return err
		}
		key, err := tpm2.Pub(*public)
		if err != nil {
			return err
		}
		der, err := x509.CreateCertificate(rand.Reader, leaf, template, key, ca)
		if err != nil {
			return err
		}
		if err := writeNV(tr, c.certificate, der); err != nil {
			return err
		}
		if c.handle == 0 {
			if err := writeNV(tr, c.template, tpm2.Marshal(c.key)); err != nil {
				return err
			}
			_, err = tpm2.FlushContext{FlushHandle: r.ObjectHandle}.Execute(tr)
			return err
		}
		_, err = tpm2.EvictControl{
			Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			ObjectHandle:     tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name},
			PersistentHandle: c.handle,
		}.Execute(tr)
		if err != nil {
			return err
		}
		_, err = tpm2.FlushContext{FlushHandle: r.ObjectHandle}.Execute(tr)
		return err
	})
	return root, others
}

// writeNV writes an NV index that the owner may read.
func writeNV(tr transport.TPM, index tpm2.TPMHandle, data []byte) error {
	_, err := tpm2.NVDefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
			NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(data)),
			Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, NoDA: true},
		}),
	}.Execute(tr)
	if err != nil {
		return err
	}
	for offset := 0; offset < len(data); offset += 512 {
		r, err := tpm2.NVReadPublic{NVIndex: index}.Execute(tr)
		if err != nil {
			return err
		}
		_, err = tpm2.NVWrite{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: r.NVName},
			Data:       tpm2.TPM2BMaxNVBuffer{Buffer: data[offset:min(offset+512, len(data))]},
			Offset:     uint16(offset),
		}.Execute(tr)
		if err != nil {
			return err
		}
	}
	return nil
}
