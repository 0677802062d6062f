package node

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// ErrActivation means that an answer does not show that the challenged AK and
// endorsement key are in one TPM.
var ErrActivation = errors.New("the answer does not show that attestation key and endorsement key are in one TPM")

// The documents of credential activation (TPM 2.0 Part 1, 24) go by file or
// wire: the verifier makes a challenge from the evidence and keeps a secret;
// only the TPM that has both keys can answer.
type challengeDocument struct {
	Version    int    `json:"version"`
	EKSHA256   string `json:"ek_sha256"`
	AKName     string `json:"ak_name"`
	Credential []byte `json:"credential"` // contents of TPM2B_ID_OBJECT
	Secret     []byte `json:"secret"`     // contents of TPM2B_ENCRYPTED_SECRET
}

type answerDocument struct {
	Version  int    `json:"version"`
	EKSHA256 string `json:"ek_sha256"`
	AKName   string `json:"ak_name"`
	Proof    []byte `json:"proof"` // HMAC-SHA-256 with the credential as key
}

type keptDocument struct {
	Version    int    `json:"version"`
	EKSHA256   string `json:"ek_sha256"`
	AKName     string `json:"ak_name"`
	Credential []byte `json:"credential"`
}

const (
	activationVersion = 1
	maxActivationLen  = 8 << 10 // bytes
	credentialLen     = 32      // bytes
)

// Challenge makes a challenge from evidence, whose endorsement and attestation
// keys it reads and does not judge. The verifier sends challenge to the
// machine and keeps kept to itself: who reads it can answer.
func Challenge(evidenceJSON []byte) (challenge, kept []byte, err error) {
	challenge, kept, err = makeChallenge(evidenceJSON)
	if err != nil {
		return nil, nil, fmt.Errorf("making a challenge: %w", err)
	}
	return challenge, kept, nil
}

func makeChallenge(evidenceJSON []byte) (challenge, kept []byte, err error) {
	e, err := parseEvidence(evidenceJSON)
	if err != nil {
		return nil, nil, err
	}
	ak, err := exact[tpm2.TPMTPublic](e.AK.Public)
	if err != nil {
		return nil, nil, fmt.Errorf("attestation key: %w", err)
	}
	if !matches(*ak, akTemplate()) {
		return nil, nil, ErrAK
	}
	if _, err := e.EK.key(); err != nil {
		return nil, nil, err
	}
	ek, err := exact[tpm2.TPMTPublic](e.EK.Public)
	if err != nil {
		return nil, nil, fmt.Errorf("endorsement key: %w", err)
	}
	kem, err := tpm2.ImportEncapsulationKey(ek)
	if err != nil {
		return nil, nil, fmt.Errorf("endorsement key: %w", err)
	}
	name := objectName(ak).Buffer
	k := keptDocument{
		Version: activationVersion, EKSHA256: e.EK.sha256(), AKName: hex.EncodeToString(name),
		Credential: make([]byte, credentialLen),
	}
	rand.Read(k.Credential)
	c := challengeDocument{Version: activationVersion, EKSHA256: k.EKSHA256, AKName: k.AKName}
	if c.Credential, c.Secret, err = tpm2.CreateCredential(rand.Reader, kem, name, k.Credential); err != nil {
		return nil, nil, err
	}
	if challenge, err = json.Marshal(c); err != nil {
		return nil, nil, err
	}
	kept, err = json.Marshal(k)
	return challenge, kept, err
}

// Activate answers a challenge.
func (n *Node) Activate(ctx context.Context, challenge []byte) ([]byte, error) {
	credential, err := n.openChallenge(ctx, challenge)
	if err != nil {
		return nil, fmt.Errorf("answering a challenge: %w", err)
	}
	defer clear(credential)
	return AnswerChallenge(credential, n.EKSHA256(), n.AKName())
}

// openChallenge has the TPM decrypt the credential in a challenge.
func (n *Node) openChallenge(ctx context.Context, challenge []byte) (credential []byte, err error) {
	c, err := ParseChallenge(challenge)
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

func (n *Node) activate(tr transport.TPM, c challengeDocument) ([]byte, error) {
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
func (n *Node) loadEndorsementKey(tr transport.TPM) (tpm2.NamedHandle, *tpm2.TPMTPublic, error) {
	want, err := exact[tpm2.TPMTPublic](n.keys.EK.Public)
	if err != nil {
		return tpm2.NamedHandle{}, nil, err
	}
	handles, err := listHandles(tr, firstEKHandle, lastEKHandle)
	if err != nil {
		return tpm2.NamedHandle{}, nil, err
	}
	for _, h := range handles {
		r, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(tr)
		if err != nil {
			return tpm2.NamedHandle{}, nil, err
		}
		if bytes.Equal(r.OutPublic.Bytes(), n.keys.EK.Public) {
			return tpm2.NamedHandle{Handle: h, Name: r.Name}, want, nil
		}
	}
	for _, template := range ekTemplates() {
		if !matches(*want, template.public) {
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

// ParseChallenge reads a challenge. Whether it is for this machine, and whether
// its credential can be opened, is for the machine to see.
func ParseChallenge(b []byte) (challengeDocument, error) {
	var c challengeDocument
	if err := decodeJSON(b, maxActivationLen, &c); err != nil {
		return challengeDocument{}, err
	}
	if c.Version != activationVersion {
		return challengeDocument{}, fmt.Errorf("version %d is unknown; this vouchd knows %d", c.Version, activationVersion)
	}
	return c, nil
}

// AnswerChallenge makes the answer that [VerifyActivation] expects of the
// machine whose TPM decrypted the credential in a challenge.
func AnswerChallenge(credential []byte, ekSHA256, akName string) ([]byte, error) {
	return json.Marshal(answerDocument{
		Version: activationVersion, EKSHA256: ekSHA256, AKName: akName,
		Proof: activationProof(credential, ekSHA256, akName),
	})
}

// An Activation is the fact that an attestation key and an endorsement key are
// in one TPM.
type Activation struct {
	EKSHA256 string
	AKName   string
}

// VerifyActivation checks a machine's answer against what the verifier kept.
// It returns [ErrActivation] if the answer is not the one.
func VerifyActivation(kept, answer []byte) (Activation, error) {
	var k keptDocument
	if err := decodeJSON(kept, maxActivationLen, &k); err != nil {
		return Activation{}, fmt.Errorf("verifying an activation: what was kept: %w", err)
	}
	var a answerDocument
	if err := decodeJSON(answer, maxActivationLen, &a); err != nil {
		return Activation{}, fmt.Errorf("verifying an activation: %w", err)
	}
	if k.Version != activationVersion || a.Version != activationVersion || len(k.Credential) != credentialLen {
		return Activation{}, fmt.Errorf("verifying an activation: unknown version; this vouch knows %d", activationVersion)
	}
	if !hmac.Equal(a.Proof, activationProof(k.Credential, k.EKSHA256, k.AKName)) {
		return Activation{}, fmt.Errorf("verifying an activation: %w", ErrActivation)
	}
	return Activation{EKSHA256: k.EKSHA256, AKName: k.AKName}, nil
}

func activationProof(credential []byte, ek, ak string) []byte {
	h := hmac.New(sha256.New, credential)
	fmt.Fprintf(h, "vouchd activation v1\n%s\n%s\n", ek, ak)
	return h.Sum(nil)
}
