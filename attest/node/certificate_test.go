package node

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

func TestEndorsementCertificates(t *testing.T) {
	t.Parallel()
	m := booted(t, "uki-secureboot", tpmtest.Start(t))
	e, given := m.evidence(t)
	roots := "endorsement:\n  roots:\n" + yamlPEM(m.real.CA[0].Raw)
	if r := Appraise(e, policy(t, roots+"boot_state: any\n"), given); r.Passed {
		t.Errorf("without the certificate between: %v", r)
	}
	// Where the TPM does not hold its chain, the platform's files do.
	m.from.Chain = [][]byte{m.real.CA[1].Raw}
	e, given = m.evidence(t)
	p := policy(t, roots+"boot_state: any\n")
	r := Appraise(e, p, given)
	if !r.Passed || !strings.Contains(r.String(), "manufacturer") {
		t.Errorf("with the chain: %v", r)
	}
	other := policy(t, "endorsement:\n  roots:\n"+yamlPEM(tpmtest.StartManufactured(t).CA[0].Raw)+"boot_state: any\n")
	refused(t, Appraise(e, other, given), "endorsement", ErrCertificate)
	given.Now = m.real.CA[0].NotAfter.AddDate(1, 0, 0)
	refused(t, Appraise(e, p, given), "endorsement", ErrCertificate)
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
				KeyUsage: x509.KeyUsageKeyEncipherment, UnknownExtKeyUsage: []asn1.ObjectIdentifier{oidEKCertificate},
				ExtraExtensions: []pkix.Extension{{Id: oidSubjectAltName, Critical: true, Value: bytes.Clone(san)}},
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
			if _, err := verifyEKCertificate(c, nil, roots, time.Now()); (err == nil) != tt.good {
				t.Errorf("verifyEKCertificate = %v", err)
			}
			self, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
			if err != nil {
				t.Fatal(err)
			}
			if c, err = x509.ParseCertificate(self); err != nil {
				t.Fatal(err)
			}
			if _, err := verifyEKCertificate(c, nil, roots, time.Now()); err == nil {
				t.Error("accepted signed by itself")
			}
		})
	}
}

func tpmName(t *testing.T, manufacturer, model, version string) []byte {
	t.Helper()
	var set pkix.RelativeDistinguishedNameSET
	for oid, text := range map[*asn1.ObjectIdentifier]string{&oidManufacturer: manufacturer, &oidModel: model, &oidVersion: version} {
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
	if r := Appraise(e, p, given); !r.Passed {
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
