package node

import (
	"encoding/hex"

	"github.com/google/go-tpm/tpm2"
)

// sealTemplate is that of a sealed secret.
func sealTemplate() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:             tpm2.TPMAlgKeyedHash,
		NameAlg:          tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true, NoDA: true},
		Unique:           tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{}),
	}
}

// An ekTemplate is one kind of endorsement key and where its certificate is:
// TCG EK Credential Profile for TPM 2.0, 2.2.1.4 and annex B.
type ekTemplate struct {
	kind        string
	certificate tpm2.TPMHandle // NV index
	public      tpm2.TPMTPublic
}

// ekTemplates lists the endorsement keys in the order in which a machine's
// identity is taken from them.
func ekTemplates() []ekTemplate {
	return []ekTemplate{
		{"RSA-2048", 0x01c00002, tpm2.RSAEKTemplate},               // L-1
		{"P-256", 0x01c0000a, tpm2.ECCEKTemplate},                  // L-2
		{"RSA-2048", 0x01c00012, highRange(tpm2.RSAEKTemplate)},    // H-1
		{"P-256", 0x01c00014, highRange(tpm2.ECCEKTemplate)},       // H-2
		{"P-384", 0x01c00016, p384(highRange(tpm2.ECCEKTemplate))}, // H-3
	}
}

// Authorisation policies of the high range's templates, ibid. B.6.5: PolicyB
// for SHA-256 and SHA-384.
var (
	policyBSHA256 = mustHex("ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0")
	policyBSHA384 = mustHex("b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12")
)

func mustHex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

func highRange(t tpm2.TPMTPublic) tpm2.TPMTPublic {
	t.ObjectAttributes.UserWithAuth = true
	t.AuthPolicy = tpm2.TPM2BDigest{Buffer: policyBSHA256}
	switch t.Type {
	case tpm2.TPMAlgRSA:
		t.Unique = tpm2.NewTPMUPublicID(t.Type, &tpm2.TPM2BPublicKeyRSA{})
	case tpm2.TPMAlgECC:
		t.Unique = tpm2.NewTPMUPublicID(t.Type, &tpm2.TPMSECCPoint{})
	}
	return t
}

func p384(t tpm2.TPMTPublic) tpm2.TPMTPublic {
	t.NameAlg = tpm2.TPMAlgSHA384
	t.AuthPolicy = tpm2.TPM2BDigest{Buffer: policyBSHA384}
	t.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		CurveID: tpm2.TPMECCNistP384,
		Symmetric: tpm2.TPMTSymDefObject{
			Algorithm: tpm2.TPMAlgAES,
			KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(256)),
			Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
		},
	})
	return t
}
