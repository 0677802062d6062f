package appraisal

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/google/go-tpm/tpm2"
)

// maxStructureLen bounds a TPM structure from outside, in bytes; the largest
// that is of use here is the public area of an RSA key.
const maxStructureLen = 4096

// Structure parses a TPM structure that has to be the whole of b.
func Structure[T tpm2.Marshallable, P interface {
	*T
	tpm2.Unmarshallable
}](b []byte) (*T, error) {
	if len(b) > maxStructureLen {
		return nil, fmt.Errorf("TPM structure of %d bytes is longer than %d", len(b), maxStructureLen)
	}
	v, err := tpm2.Unmarshal[T, P](b)
	if err != nil {
		return nil, fmt.Errorf("parsing TPM structure: %w", err)
	}
	if !bytes.Equal(tpm2.Marshal(*v), b) {
		return nil, errors.New("parsing TPM structure: bytes that belong to nothing")
	}
	return v, nil
}

// DecodeJSON decodes a document of at most limit bytes, and nothing beside it.
func DecodeJSON(b []byte, limit int, v any) error {
	if len(b) > limit {
		return fmt.Errorf("document of %d bytes is longer than %d", len(b), limit)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("more follows the document")
	}
	return nil
}

// P256 returns the key of a public area that holds an ECDSA P-256 key.
func P256(public *tpm2.TPMTPublic) (*ecdsa.PublicKey, error) {
	k, err := tpm2.Pub(*public)
	if err != nil {
		return nil, err
	}
	ec, ok := k.(*ecdsa.PublicKey)
	if !ok || ec.Curve != elliptic.P256() {
		return nil, errors.New("is not an ECDSA P-256 key")
	}
	if _, err := ec.ECDH(); err != nil {
		return nil, errors.New("is not a point on P-256")
	}
	return ec, nil
}

// ObjectName returns the name of a public area: TPM 2.0 Part 1, 16.
func ObjectName(public *tpm2.TPMTPublic) *tpm2.TPM2BName {
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return &tpm2.TPM2BName{} // of an unknown hash: no name, which equals none
	}
	return name
}

func nameText(public *tpm2.TPMTPublic) string { return hex.EncodeToString(ObjectName(public).Buffer) }
