package appraisal

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrCertificate means that a certificate is not what a TPM maker or a cloud
// issues for a TPM's key, or does not lead to a root that the policy names.
var ErrCertificate = errors.New("the certificate does not lead to a root in the policy")

var (
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidEKCertificate  = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	oidManufacturer   = asn1.ObjectIdentifier{2, 23, 133, 2, 1}
	oidModel          = asn1.ObjectIdentifier{2, 23, 133, 2, 2}
	oidVersion        = asn1.ObjectIdentifier{2, 23, 133, 2, 3}
)

// A tpmModel is what an endorsement key certificate says the TPM is.
type tpmModel struct{ manufacturer, model, version string }

func (m tpmModel) String() string {
	return fmt.Sprintf("manufacturer %q, model %q, version %q", m.manufacturer, m.model, m.version)
}

// verifyEKCertificate verifies an endorsement key's certificate as the TCG EK
// Credential Profile, 3.2, has it. Such certificates are no web certificates:
// the name of the TPM is a directory name in a critical subject alternative
// name, and the key's usage is the TCG's own.
func verifyEKCertificate(c *x509.Certificate, chain [][]byte, roots *x509.CertPool, now time.Time) (tpmModel, error) {
	if c.IsCA {
		return tpmModel{}, fmt.Errorf("%w: it is a certificate authority's", ErrCertificate)
	}
	// Older makers leave the extended key usage out; another one is wrong.
	if usages := len(c.ExtKeyUsage) + len(c.UnknownExtKeyUsage); usages > 0 &&
		!slices.ContainsFunc(c.UnknownExtKeyUsage, oidEKCertificate.Equal) {
		return tpmModel{}, fmt.Errorf("%w: it is not for an endorsement key", ErrCertificate)
	}
	model, err := parseTPMModel(c)
	if err != nil {
		return tpmModel{}, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	// Now that the name was read, it is handled; anything else critical is not.
	handled := *c
	handled.UnhandledCriticalExtensions = slices.DeleteFunc(slices.Clone(c.UnhandledCriticalExtensions), oidSubjectAltName.Equal)
	return model, verifyChain(&handled, chain, roots, now)
}

func verifyChain(c *x509.Certificate, chain [][]byte, roots *x509.CertPool, now time.Time) error {
	intermediates := x509.NewCertPool()
	for _, der := range chain[:min(len(chain), maxCertificates)] {
		if len(der) > maxCertificateLen {
			return fmt.Errorf("%w: one in its chain has %d bytes", ErrCertificate, len(der))
		}
		if i, err := x509.ParseCertificate(der); err == nil {
			intermediates.AddCert(i)
		}
	}
	_, err := c.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	return nil
}

// parseTPMModel reads the TPM's name from the subject alternative name.
func parseTPMModel(c *x509.Certificate) (tpmModel, error) {
	i := slices.IndexFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidSubjectAltName) })
	if i < 0 {
		return tpmModel{}, errors.New("it does not name a TPM (no subject alternative name)")
	}
	var names []asn1.RawValue
	if rest, err := asn1.Unmarshal(c.Extensions[i].Value, &names); err != nil || len(rest) > 0 {
		return tpmModel{}, errors.New("its subject alternative name is malformed")
	}
	var model tpmModel
	for _, n := range names {
		const directoryName = 4 // RFC 5280, 4.2.1.6
		if n.Class != asn1.ClassContextSpecific || n.Tag != directoryName {
			continue
		}
		var rdns pkix.RDNSequence
		if rest, err := asn1.Unmarshal(n.Bytes, &rdns); err != nil || len(rest) > 0 {
			return tpmModel{}, errors.New("its subject alternative name is malformed")
		}
		for _, rdn := range rdns {
			for _, a := range rdn {
				text, _ := a.Value.(string)
				switch {
				case a.Type.Equal(oidManufacturer):
					model.manufacturer = text
				case a.Type.Equal(oidModel):
					model.model = text
				case a.Type.Equal(oidVersion):
					model.version = text
				}
			}
		}
	}
	if model.manufacturer == "" || model.model == "" || model.version == "" {
		return tpmModel{}, errors.New("its subject alternative name does not name a TPM's manufacturer, model and version")
	}
	return model, nil
}
