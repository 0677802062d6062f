package node

import (
	"bytes"
	"context"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/appraisal"
)

// Activate answers a challenge.
func (n *endorsed) Activate(ctx context.Context, challenge []byte) ([]byte, error) {
	credential, err := n.openChallenge(ctx, challenge)
	if err != nil {
		return nil, fmt.Errorf("answering a challenge: %w", err)
	}
	defer clear(credential)
	return appraisal.AnswerChallenge(credential, n.EKSHA256(), n.AKName())
}

// openChallenge has the TPM decrypt the credential in a challenge.
func (n *endorsed) openChallenge(ctx context.Context, challenge []byte) (credential []byte, err error) {
	c, err := appraisal.ParseChallenge(challenge)
	if err != nil {
		return nil, err
	}
	if c.AKName != n.AKName() || c.EKSHA256 != n.EKSHA256() {
		return nil, fmt.Errorf("it is for another machine (attestation key %.80s), or from before vouch node reset", c.AKName)
	}
	err = n.tpm.do(ctx, "activating the credential", creationLimit, func(tr transport.TPM) (err error) {
		credential, err = n.activate(tr, c)
		return err
	})
	return credential, err
}

func (n *endorsed) activate(tr transport.TPM, c appraisal.ActivationChallenge) ([]byte, error) {
	ek, public, err := n.loadEndorsementKey(tr)
	if err != nil {
		return nil, err
	}
	ak, err := n.load(tr, n.keys.AK)
	if err != nil {
		return nil, err
	}
	r, err := tpm2.ActivateCredential{
		ActivateHandle: withAuth(ak, tpm2.PasswordAuth(nil)),
		KeyHandle:      withAuth(ek, endorsementAuth(public)),
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: c.Credential},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: c.Secret},
	}.Execute(tr, n.salted(tpm2.AESEncryption(128, tpm2.EncryptOut)))
	if err != nil {
		return nil, fmt.Errorf("the TPM refuses the challenge: %w", err)
	}
	return r.CertInfo.Buffer, nil
}

// loadEndorsementKey finds the key among those kept loaded, or makes it again.
func (n *endorsed) loadEndorsementKey(tr transport.TPM) (tpm2.NamedHandle, *tpm2.TPMTPublic, error) {
	want, err := appraisal.Structure[tpm2.TPMTPublic](n.keys.EK.Public)
	if err != nil {
		return tpm2.NamedHandle{}, nil, err
	}
	handles, err := listHandles(tr, firstEKHandle, lastEKHandle)
	if err != nil {
		return tpm2.NamedHandle{}, nil, err
	}
	for _, h := range handles {
		r, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(tr)
		if isUnusable(err) {
			continue // no endorsement key
		}
		if err != nil {
			return tpm2.NamedHandle{}, nil, err
		}
		if bytes.Equal(r.OutPublic.Bytes(), n.keys.EK.Public) {
			return tpm2.NamedHandle{Handle: h, Name: r.Name}, want, nil
		}
	}
	for _, template := range ekTemplates() {
		if !appraisal.Matches(*want, template.public) {
			continue
		}
		r, err := tpm2.CreatePrimary{
			PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
			InPublic:      tpm2.New2B(template.public),
		}.Execute(tr)
		if err != nil {
			return tpm2.NamedHandle{}, nil, fmt.Errorf("making the endorsement key: %w", err)
		}
		if bytes.Equal(r.OutPublic.Bytes(), n.keys.EK.Public) {
			return tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name}, want, nil
		}
	}
	return tpm2.NamedHandle{}, nil, fmt.Errorf("endorsement key: %w", ErrOtherTPM)
}

// endorsementAuth authorises the use of an endorsement key: by the hierarchy's
// empty authorisation through a policy, or in the high range directly.
func endorsementAuth(public *tpm2.TPMTPublic) tpm2.Session {
	if public.ObjectAttributes.UserWithAuth {
		return tpm2.PasswordAuth(nil)
	}
	return tpm2.Policy(public.NameAlg, nonceLen, func(tr transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
		_, err := tpm2.PolicySecret{
			AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
			PolicySession: session,
			NonceTPM:      nonce,
		}.Execute(tr)
		return err
	})
}
