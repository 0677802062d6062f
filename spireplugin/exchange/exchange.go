// Package exchange is what a host and the plug-in vouchd-spire say to each other, by way of a
// SPIRE server: documents in JSON, one a message.
//
//	host    hello: the version
//	plug-in a nonce
//	host    evidence for it, and the agent's key as the AK certified it
//	plug-in a challenge, which only the TPM of the evidence can answer
//	host    the answer
//
// The server passes the messages on unread.
package exchange

import (
	"encoding/json"
	"fmt"

	"github.com/vouchd/vouchd/attest/appraisal"
)

// Name is that of the attestor, and the type of its selectors.
const Name = "vouchd"

// version is of the documents.
const version = 1

// MaxMessage bounds a message, in bytes. A SPIRE server takes 4 MiB.
const MaxMessage = 3 << 20

// NonceLen is in bytes.
const NonceLen = 32

// A Hello begins.
type Hello struct {
	Version int `json:"version"`
}

// A Question asks for evidence.
type Question struct {
	Version int    `json:"version"`
	Nonce   []byte `json:"nonce"`
}

// A Proof is what the host shows.
type Proof struct {
	Version  int                    `json:"version"`
	AgentKey appraisal.CertifiedKey `json:"agent_key"`
	Evidence json.RawMessage        `json:"evidence"`
}

// NewHello, NewQuestion and NewProof encode documents of this version.
func NewHello() ([]byte, error) { return json.Marshal(Hello{version}) }

// NewQuestion asks for evidence for a nonce.
func NewQuestion(nonce []byte) ([]byte, error) { return json.Marshal(Question{version, nonce}) }

// NewProof shows evidence and a key.
func NewProof(key appraisal.CertifiedKey, evidence []byte) ([]byte, error) {
	b, err := json.Marshal(Proof{version, key, evidence})
	if err == nil && len(b) > MaxMessage {
		err = fmt.Errorf("the evidence has %d bytes, more than the %d that a SPIRE server takes", len(b), MaxMessage)
	}
	return b, err
}

// ReadHello, ReadQuestion and ReadProof refuse documents of another version.
func ReadHello(b []byte) error {
	var h Hello
	return read(b, &h, &h.Version)
}

// ReadQuestion returns the nonce.
func ReadQuestion(b []byte) ([]byte, error) {
	var q Question
	err := read(b, &q, &q.Version)
	if err == nil && len(q.Nonce) != NonceLen {
		err = fmt.Errorf("the nonce has %d bytes, not %d", len(q.Nonce), NonceLen)
	}
	return q.Nonce, err
}

// ReadProof returns what the host shows, and judges nothing of it.
func ReadProof(b []byte) (Proof, error) {
	var p Proof
	return p, read(b, &p, &p.Version)
}

func read(b []byte, v any, of *int) error {
	if err := appraisal.DecodeJSON(b, MaxMessage, v); err != nil {
		return err
	}
	if *of != version {
		return fmt.Errorf("version %d is unknown here, which knows %d; update the older of vouchd and vouchd-spire", *of, version)
	}
	return nil
}
