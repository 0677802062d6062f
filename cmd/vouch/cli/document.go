package cli

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/attest/appraisal"
)

// How large a document may be, in bytes.
const (
	MaxSmallDocument = 1 << 20                           // any but those below
	MaxLargeDocument = appraisal.MaxEvidenceLen + 64<<10 // evidence, and a request, which contains it
)

// ReadDocument reads a file, or standard input if its name is -.
func ReadDocument(cmd *cobra.Command, name string, limit int64) ([]byte, error) {
	r := cmd.InOrStdin()
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("reading %s: it is larger than %d bytes, too large for what is expected here", name, limit)
	}
	return bytes.TrimSpace(b), nil
}

// WriteDocument writes a document for another command to read.
func WriteDocument(cmd *cobra.Command, document []byte) error {
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s\n", document)
	return err
}

// ReadCertificate reads one certificate in PEM.
func ReadCertificate(cmd *cobra.Command, file string) (*x509.Certificate, error) {
	data, err := ReadDocument(cmd, file, MaxSmallDocument)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s holds no certificate in PEM", file)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

// PEM encodes certificates.
func PEM(certs []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a buffer takes every write
	}
	return b.Bytes()
}
