package node

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

	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

// Azure's vTPM has a certified attestation key and no endorsement certificate.
func TestPlatformsThatCertifyAnAttestationKey(t *testing.T) {
	t.Parallel()
	real := tpmtest.Start(t)
	cloud, otherKeys := newCloud(t, real, tpm2.TPMAObject{Restricted: true})
	m := booted(t, "uki-secureboot", real)
	e, given := m.evidence(t)
	given.Activation = nil // there is no endorsement key that anybody certified
	p := policy(t, "endorsement:\n  platform_roots:\n"+yamlPEM(cloud)+"boot_state: any\n")
	if r := Appraise(e, p, given); !r.Passed || r.EKSHA256 != "" {
		t.Errorf("%v", r)
	}
	var forged evidence
	if err := json.Unmarshal(e, &forged); err != nil {
		t.Fatal(err)
	}
	otherTPM := tpmtest.StartManufactured(t)
	newCloud(t, otherTPM, tpm2.TPMAObject{Restricted: true})
	other := booted(t, "uki-secureboot", otherTPM)
	var others evidence
	othersEvidence, _ := other.evidence(t)
	if err := json.Unmarshal(othersEvidence, &others); err != nil {
		t.Fatal(err)
	}
	for name, forge := range map[string]func(*platformAK){
		"another machine's certification": func(a *platformAK) { a.Certified = others.Platform.Certified },
		"another machine's certificate":   func(a *platformAK) { a.Certificates = others.Platform.Certificates },
		"another machine's platform key":  func(a *platformAK) { *a = *others.Platform },
		"another key's certificate":       func(a *platformAK) { a.Certificates = [][]byte{otherKeys} },
		"no certificate":                  func(a *platformAK) { a.Certificates = nil },
	} {
		t.Run(name, func(t *testing.T) {
			f := clone(t, forged)
			forge(f.Platform)
			refused(t, Appraise(encode(t, f), p, given), "endorsement", nil)
		})
	}
	t.Run("no platform key", func(t *testing.T) {
		f := clone(t, forged)
		f.Platform = nil
		refused(t, Appraise(encode(t, f), p, given), "endorsement", nil)
	})
	t.Run("a platform key that signs anything", func(t *testing.T) {
		real := tpmtest.Start(t)
		root, _ := newCloud(t, real, tpm2.TPMAObject{})
		e, given := booted(t, "uki-secureboot", real).evidence(t)
		p := policy(t, "endorsement:\n  platform_roots:\n"+yamlPEM(root)+"boot_state: any\n")
		refused(t, Appraise(e, p, given), "endorsement", ErrAK)
	})
}

// newCloud equips a TPM as Azure does and returns its root, and a certificate
// that the same root issued for another key.
func newCloud(t *testing.T, real *tpmtest.TPM, a tpm2.TPMAObject) (root, others []byte) {
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
	a.FixedTPM, a.FixedParent, a.SensitiveDataOrigin, a.UserWithAuth, a.SignEncrypt = true, true, true, true, true
	real.Do(func(tr transport.TPM) error {
		r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tpm2.TPMTPublic{
			Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: a,
			Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
				Scheme: tpm2.TPMTRSAScheme{
					Scheme:  tpm2.TPMAlgRSASSA,
					Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256}),
				},
				KeyBits: 2048,
			}),
		})}.Execute(tr)
		if err != nil {
			return err
		}
		_, err = tpm2.EvictControl{
			Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			ObjectHandle:     tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name},
			PersistentHandle: azureAK,
		}.Execute(tr)
		if err != nil {
			return err
		}
		if err := flush(tr, r.ObjectHandle); err != nil {
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
		leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0)}
		der, err := x509.CreateCertificate(rand.Reader, leaf, template, key, ca)
		if err != nil {
			return err
		}
		if others, err = x509.CreateCertificate(rand.Reader, leaf, template, &ca.PublicKey, ca); err != nil {
			return err
		}
		return writeNV(tr, azureAKCertificate, der)
	})
	return root, others
}

func writeNV(tr transport.TPM, index tpm2.TPMHandle, data []byte) error {
	_, err := tpm2.NVDefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
			NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(data)),
			Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true},
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
