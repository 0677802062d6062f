package appraisal

import (
	"bytes"

	"github.com/google/go-tpm/tpm2"
)

// The verifier accepts keys that match these templates in everything but the
// key itself, so the templates are the whole of what a key may and may not do.

// AKTemplate is the AK's: a key that never leaves this TPM (fixedTPM,
// fixedParent), was made in it (sensitiveDataOrigin), and signs nothing but
// what the TPM made (restricted).
func AKTemplate() tpm2.TPMTPublic {
	t := SigningTemplate()
	t.ObjectAttributes.Restricted = true
	return t
}

// SigningTemplate is that of the node key and its like: it signs what it is
// given. Its authorisation is empty: who may open the TPM may sign, and who
// could read an authorisation from the state directory may open the TPM.
func SigningTemplate() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			UserWithAuth: true, NoDA: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	}
}

// CounterPublic is the public area of the NV counter once it was written. It
// only ever goes up, also when it is deleted and made again, and it is written
// through to NV each time (not orderly), so that a power cut loses no step.
func CounterPublic(index tpm2.TPMHandle) tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{
		NVIndex: index,
		NameAlg: tpm2.TPMAlgSHA256,
		Attributes: tpm2.TPMANV{
			NT: tpm2.TPMNTCounter, AuthWrite: true, AuthRead: true, NoDA: true, Written: true,
		},
		DataSize: CounterLen,
	}
}

// CounterLen is the size of a counter, in bytes: TPM 2.0 Part 2, 13.2, TPM_NT_COUNTER.
const CounterLen = 8

// Matches reports whether a public area is the template's in everything but
// the key.
func Matches(public, template tpm2.TPMTPublic) bool {
	if public.Type != template.Type {
		return false
	}
	public.Unique = template.Unique
	return bytes.Equal(tpm2.Marshal(public), tpm2.Marshal(template))
}

// BoundTemplate makes a template of a key that works in approved states only.
func BoundTemplate(t tpm2.TPMTPublic, policy []byte) tpm2.TPMTPublic {
	t.ObjectAttributes.UserWithAuth = false // the policy is the only way in
	t.AuthPolicy = tpm2.TPM2BDigest{Buffer: policy}
	return t
}
