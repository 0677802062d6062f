package cli

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/config"
)

// ParseNonce parses a nonce from the command line.
func ParseNonce(text string) ([]byte, error) {
	if text == "" {
		return nil, Usagef("--nonce is required; the verifier generates one with: vouch node nonce")
	}
	nonce, err := hex.DecodeString(text)
	if err != nil || len(nonce) < appraisal.MinNonceLen || len(nonce) > appraisal.MaxNonceLen {
		return nil, Usagef("--nonce %.140q: want %d to %d bytes in hexadecimal", text, appraisal.MinNonceLen, appraisal.MaxNonceLen)
	}
	return nonce, nil
}

// ReadPolicy reads an appraisal policy.
func ReadPolicy(cmd *cobra.Command, file string) (appraisal.Policy, error) {
	data, err := ReadDocument(cmd, file, config.MaxFileLen)
	if err != nil {
		return appraisal.Policy{}, err
	}
	return appraisal.ParsePolicy(file, data)
}

// ReadResult reads the result of an earlier appraisal. The user vouches for it.
func ReadResult(cmd *cobra.Command, file string) (appraisal.Result, error) {
	data, err := ReadDocument(cmd, file, MaxSmallDocument)
	if err != nil {
		return appraisal.Result{}, err
	}
	var r appraisal.Result
	if err := json.Unmarshal(data, &r); err != nil || len(r.Rules) == 0 || r.AKName == "" {
		return appraisal.Result{}, fmt.Errorf("%s is not the result of an appraisal; make one with: vouch node appraise --output json", file)
	}
	return r, nil
}

// PrintResult writes the result of an appraisal for people.
func PrintResult(w io.Writer, r appraisal.Result) {
	fmt.Fprint(w, r)
	if r.AKName == "" {
		return
	}
	fmt.Fprintf(w, "  host %q (self-reported), attestation key %s\n", r.Hostname, r.AKName)
}
