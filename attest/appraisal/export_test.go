package appraisal

import "crypto"

// What tests outside the package see of its inside.

// IMAData returns what each entry of an IMA list extends PCR 10 with.
func IMAData(list []byte) ([][]byte, error) {
	entries, err := parseIMA(list)
	var all [][]byte
	for _, e := range entries {
		all = append(all, e.data)
	}
	return all, err
}

// Authorities returns the digests of the certificates that evidence shows to
// have verified what was booted.
func Authorities(evidenceJSON []byte) ([]string, error) {
	e, err := parseEvidence(evidenceJSON)
	if err != nil {
		return nil, err
	}
	log, err := e.bootLog()
	if err != nil {
		return nil, err
	}
	s, err := log.SecureBoot()
	return s.Authorities, err
}

// EKOf returns the endorsement key in evidence.
func EKOf(evidenceJSON []byte) (crypto.PublicKey, error) {
	e, err := parseEvidence(evidenceJSON)
	if err != nil {
		return nil, err
	}
	return e.EK.key()
}

// A Request is the document of a request to be enrolled.
type Request = request

var (
	ParseEvidence       = parseEvidence
	VerifyEKCertificate = verifyEKCertificate
	CATemplate          = caTemplate
	SignCA              = signCA

	OIDSubjectAltName = oidSubjectAltName
	OIDEKCertificate  = oidEKCertificate
	OIDManufacturer   = oidManufacturer
	OIDModel          = oidModel
	OIDVersion        = oidVersion
)
