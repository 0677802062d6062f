package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/google/go-tpm/tpm2"
)

// maxStructureLen bounds a TPM structure from outside, in bytes; the largest
// that is of use here is the public area of an RSA key.
const maxStructureLen = 4096

// exact parses a TPM structure that has to be the whole of b.
func exact[T tpm2.Marshallable, P interface {
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

// decodeJSON decodes a document of at most limit bytes, and nothing beside it.
func decodeJSON(b []byte, limit int, v any) error {
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
