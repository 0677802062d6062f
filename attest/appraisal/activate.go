package appraisal

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// ErrActivation means that an answer does not show that the challenged AK and
// endorsement key are in one TPM.
var ErrActivation = errors.New("the answer does not show that attestation key and endorsement key are in one TPM")

// The documents of credential activation (TPM 2.0 Part 1, 24) go by file or
// wire: the verifier makes a challenge from the evidence and keeps a secret;
// only the TPM that has both keys can answer.

// An ActivationChallenge is what TPM2_ActivateCredential takes (TPM 2.0 Part 3,
// 12.5), and for which machine it was made.
type ActivationChallenge struct {
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
	ak, err := Structure[tpm2.TPMTPublic](e.AK.Public)
	if err != nil {
		return nil, nil, fmt.Errorf("attestation key: %w", err)
	}
	if !Matches(*ak, AKTemplate()) {
		return nil, nil, ErrAK
	}
	if _, err := e.EK.key(); err != nil {
		return nil, nil, err
	}
	ek, err := Structure[tpm2.TPMTPublic](e.EK.Public)
	if err != nil {
		return nil, nil, fmt.Errorf("endorsement key: %w", err)
	}
	kem, err := tpm2.ImportEncapsulationKey(ek)
	if err != nil {
		return nil, nil, fmt.Errorf("endorsement key: %w", err)
	}
	name := ObjectName(ak).Buffer
	k := keptDocument{
		Version: activationVersion, EKSHA256: e.EK.SHA256(), AKName: hex.EncodeToString(name),
		Credential: make([]byte, credentialLen),
	}
	rand.Read(k.Credential)
	c := ActivationChallenge{Version: activationVersion, EKSHA256: k.EKSHA256, AKName: k.AKName}
	if c.Credential, c.Secret, err = tpm2.CreateCredential(rand.Reader, kem, name, k.Credential); err != nil {
		return nil, nil, err
	}
	if challenge, err = json.Marshal(c); err != nil {
		return nil, nil, err
	}
	kept, err = json.Marshal(k)
	return challenge, kept, err
}

// ParseChallenge reads a challenge. Whether it is for this machine, and whether
// its credential can be opened, is for the machine to see.
func ParseChallenge(b []byte) (ActivationChallenge, error) {
	var c ActivationChallenge
	if err := DecodeJSON(b, maxActivationLen, &c); err != nil {
		return ActivationChallenge{}, err
	}
	if c.Version != activationVersion {
		return ActivationChallenge{}, fmt.Errorf("version %d is unknown; this vouchd knows %d", c.Version, activationVersion)
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
	if err := DecodeJSON(kept, maxActivationLen, &k); err != nil {
		return Activation{}, fmt.Errorf("verifying an activation: what was kept: %w", err)
	}
	var a answerDocument
	if err := DecodeJSON(answer, maxActivationLen, &a); err != nil {
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
