package appraisal_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

func TestEndorsementCertificates(t *testing.T) {
	t.Parallel()
	m := booted(t, "uki-secureboot", tpmtest.Start(t))
	e, given := m.evidence(t)
	roots := "endorsement:\n  roots:\n" + yamlPEM(m.real.CA[0].Raw)
	if r := appraisal.Appraise(e, policy(t, roots+"boot_state: any\n"), given); r.Passed {
		t.Errorf("without the certificate between: %v", r)
	}
	// Where the TPM does not hold its chain, the platform's files do.
	m.from.Chain = [][]byte{m.real.CA[1].Raw}
	e, given = m.evidence(t)
	p := policy(t, roots+"boot_state: any\n")
	r := appraisal.Appraise(e, p, given)
	if !r.Passed || !strings.Contains(r.String(), "manufacturer") {
		t.Errorf("with the chain: %v", r)
	}
	other := policy(t, "endorsement:\n  roots:\n"+yamlPEM(tpmtest.StartManufactured(t).CA[0].Raw)+"boot_state: any\n")
	refused(t, appraisal.Appraise(e, other, given), "endorsement", appraisal.ErrCertificate)
	given.Now = m.real.CA[0].NotAfter.AddDate(1, 0, 0)
	refused(t, appraisal.Appraise(e, p, given), "endorsement", appraisal.ErrCertificate)
}

// A maker's certificates for each kind of key lie in the TPM.
func TestCertificateOfEachKindOfEndorsementKey(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		kind   string
		remove []tpm2.TPMHandle // certificates that come before it
	}{
		{"RSA-2048", nil},
		{"P-384", []tpm2.TPMHandle{0x01c00002}},
		{"P-256", []tpm2.TPMHandle{0x01c00002, 0x01c00016}},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			t.Parallel()
			real := tpmtest.Start(t)
			root, between := real.CA[0].Raw, [][]byte{real.CA[1].Raw}
			for _, index := range tt.remove {
				undefine(t, real, index)
			}
			if tt.kind == "P-256" { // which swtpm's maker does not certify
				root, between = certifyP256(t, real), nil
			}
			m := booted(t, "uki-secureboot", real)
			m.from.Chain = between
			e, given := m.evidence(t)
			r := appraisal.Appraise(e, policy(t, "endorsement:\n  roots:\n"+yamlPEM(root)+"boot_state: any\n"), given)
			if !r.Passed || r.EKSHA256 != m.EKSHA256() {
				t.Errorf("%v", r)
			}
			k, err := appraisal.EKOf(e)
			if err != nil {
				t.Fatal(err)
			}
			if got := kindOf(k); got != tt.kind {
				t.Errorf("the endorsement key is %s, want %s", got, tt.kind)
			}
		})
	}
}

func kindOf(k crypto.PublicKey) string {
	switch k := k.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA-%d", k.N.BitLen())
	case *ecdsa.PublicKey:
		return k.Params().Name
	}
	return "unknown"
}

// certifyP256 puts a certificate for the TPM's P-256 endorsement key where
// makers put it, and returns the root.
func certifyP256(t *testing.T, real *tpmtest.TPM) (root []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "maker"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0), KeyUsage: x509.KeyUsageCertSign,
	}
	if root, err = x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key); err != nil {
		t.Fatal(err)
	}
	real.Do(func(tr transport.TPM) error {
		r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tpm2.ECCEKTemplate)}.Execute(tr)
		if err != nil {
			return err
		}
		if _, err := (tpm2.FlushContext{FlushHandle: r.ObjectHandle}).Execute(tr); err != nil {
			return err
		}
		public, err := r.OutPublic.Contents()
		if err != nil {
			return err
		}
		ek, err := tpm2.Pub(*public)
		if err != nil {
			return err
		}
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(2), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0),
			KeyUsage: x509.KeyUsageKeyAgreement, UnknownExtKeyUsage: []asn1.ObjectIdentifier{appraisal.OIDEKCertificate},
			ExtraExtensions: []pkix.Extension{{Id: appraisal.OIDSubjectAltName, Critical: true, Value: tpmName(t, "id:49465800", "SLB9672", "id:0f17")}},
		}, ca, ek, key)
		if err != nil {
			return err
		}
		return writeNV(tr, 0x01c0000a, append(der, make([]byte, 100)...)) // makers fill the index up
	})
	return root
}

// Certificates as makers issue them, and as they must not be.
func TestEndorsementCertificateForms(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "maker"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0), KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if ca, err = x509.ParseCertificate(caDER); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	san := tpmName(t, "id:49465800", "SLB9670", "id:0d0b")
	for _, tt := range []struct {
		name   string
		change func(*x509.Certificate)
		good   bool
	}{
		{"critical name and the TCG's usage", func(*x509.Certificate) {}, true},
		{"no usage, as older makers", func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil }, true},
		{"a name that is not critical", func(c *x509.Certificate) { c.ExtraExtensions[0].Critical = false }, true},
		{"another usage", func(c *x509.Certificate) {
			c.UnknownExtKeyUsage = nil
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}, false},
		{"no name", func(c *x509.Certificate) { c.ExtraExtensions = nil }, false},
		{"a web server's name", func(c *x509.Certificate) { c.ExtraExtensions = nil; c.DNSNames = []string{"tpm.example.org"} }, false},
		{"a name without a model", func(c *x509.Certificate) { c.ExtraExtensions[0].Value = tpmName(t, "id:49465800", "", "id:0d0b") }, false},
		{"another critical extension", func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}})
		}, false},
		{"a certificate authority's", func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, false},
		{"expired", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Hour) }, false},
		{"not yet valid", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			template := &x509.Certificate{
				SerialNumber: big.NewInt(2), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0),
				KeyUsage: x509.KeyUsageKeyEncipherment, UnknownExtKeyUsage: []asn1.ObjectIdentifier{appraisal.OIDEKCertificate},
				ExtraExtensions: []pkix.Extension{{Id: appraisal.OIDSubjectAltName, Critical: true, Value: bytes.Clone(san)}},
			}
			tt.change(template)
			der, err := x509.CreateCertificate(rand.Reader, template, ca, &key.PublicKey, key)
			if err != nil {
				t.Fatal(err)
			}
			c, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := appraisal.VerifyEKCertificate(c, nil, roots, time.Now()); (err == nil) != tt.good {
				t.Errorf("verifyEKCertificate = %v", err)
			}
			self, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
			if err != nil {
				t.Fatal(err)
			}
			if c, err = x509.ParseCertificate(self); err != nil {
				t.Fatal(err)
			}
			if _, err := appraisal.VerifyEKCertificate(c, nil, roots, time.Now()); err == nil {
				t.Error("accepted signed by itself")
			}
		})
	}
}

func tpmName(t *testing.T, manufacturer, model, version string) []byte {
	t.Helper()
	var set pkix.RelativeDistinguishedNameSET
	for oid, text := range map[*asn1.ObjectIdentifier]string{&appraisal.OIDManufacturer: manufacturer, &appraisal.OIDModel: model, &appraisal.OIDVersion: version} {
		set = append(set, pkix.AttributeTypeAndValue{Type: *oid, Value: text})
	}
	name, err := asn1.Marshal(pkix.RDNSequence{set})
	if err != nil {
		t.Fatal(err)
	}
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}})
	if err != nil {
		t.Fatal(err)
	}
	return san
}

// The TPM may hold the certificates above the endorsement key's.
func TestChainInTheTPM(t *testing.T) {
	t.Parallel()
	real := tpmtest.Start(t)
	real.Do(func(tr transport.TPM) error {
		der := real.CA[1].Raw
		if err := writeNV(tr, 0x01c00100, der[:700]); err != nil { // over two indices
			return err
		}
		return writeNV(tr, 0x01c00101, der[700:])
	})
	m := booted(t, "uki-secureboot", real)
	e, given := m.evidence(t)
	p := policy(t, "endorsement:\n  roots:\n"+yamlPEM(real.CA[0].Raw)+"boot_state: any\n")
	if r := appraisal.Appraise(e, p, given); !r.Passed {
		t.Errorf("%v", r)
	}
	v := statementOf(t, m.Node)
	roots := x509.NewCertPool()
	roots.AddCert(real.CA[0])
	if err := v.VerifyEK(roots, nil, time.Now()); err != nil {
		t.Error(err)
	}
	if err := v.VerifyEK(x509.NewCertPool(), nil, time.Now()); err == nil {
		t.Error("VerifyEK without roots succeeded")
	}
}
