package auditor

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

// A knownMachine is the keys of a machine that its verifier has checked: what
// vouch node verify prints, and part of what vouch node appraise prints.
type knownMachine struct {
	Version  int    `json:"version"`
	EKSHA256 string `json:"ek_sha256"`
	AKName   string `json:"ak_name"`
	Passed   *bool  `json:"passed,omitempty"` // of an attestation result only

	file string // it was read from
}

const knownMachineVersion = 1

// readKnownMachines reads what an auditor found of machines: files, or folders of
// files that end in .json.
func readKnownMachines(cmd *cobra.Command, names []string) (all []*knownMachine, err error) {
	for _, name := range names {
		files := []string{name}
		if info, err := os.Stat(name); err == nil && info.IsDir() {
			if files, err = filepath.Glob(filepath.Join(globbed(name), "*.json")); err != nil {
				return nil, err
			}
			if len(files) == 0 {
				return nil, fmt.Errorf("%s has no file that ends in .json", name)
			}
		}
		for _, file := range files {
			m, err := readKnownMachine(cmd, file)
			if err != nil {
				return nil, err
			}
			all = append(all, m)
		}
	}
	return all, nil
}

// globbed is a name in which nothing is a pattern.
func globbed(name string) string {
	return regexp.MustCompile(`[*?\[\\]`).ReplaceAllString(name, `\$0`)
}

// readKnownMachine reads what an auditor verified about a machine.
func readKnownMachine(cmd *cobra.Command, file string) (*knownMachine, error) {
	data, err := cli.ReadDocument(cmd, file, cli.MaxSmallDocument)
	if err != nil {
		return nil, err
	}
	m := knownMachine{file: file}
	err = json.Unmarshal(data, &m)
	switch {
	case err != nil || m.AKName == "" && m.Passed == nil:
		return nil, fmt.Errorf("%s is not the result of vouch node appraise or vouch node verify with --output json", file)
	case m.Version != knownMachineVersion:
		return nil, fmt.Errorf("%s has version %d; this vouch knows %d", file, m.Version, knownMachineVersion)
	case m.Passed != nil && !*m.Passed:
		return nil, fmt.Errorf("%s is the result of a machine that did not pass, so it cannot be used; appraise the machine again", file)
	case m.EKSHA256 == "" || m.AKName == "":
		return nil, fmt.Errorf("%s does not say which endorsement key is in the TPM: there was no challenge; see vouch node challenge", file)
	}
	return &m, nil
}

// is returns an error unless a statement is by this machine's keys.
func (m *knownMachine) is(v *appraisal.Verified) error {
	if v.EKSHA256 != m.EKSHA256 {
		return fmt.Errorf("the log is of another machine: its endorsement key is %s and that of --node is %s", v.EKSHA256, m.EKSHA256)
	}
	if v.AKName != m.AKName {
		return fmt.Errorf("the attestation key is %s and that of --node is %s: either the log claims another machine's endorsement key, or the machine was reset since; challenge it again",
			v.AKName, m.AKName)
	}
	return nil
}

// A verifyView is a report, and whether the log's machine is known.
type verifyView struct {
	*reader.Report
	MachineKnown bool `json:"machine_known"` // --node says whose log it is, and it is
}

func (v verifyView) writeText(w io.Writer, tpm *tpmVerifier) {
	v.WriteText(w)
	switch {
	case v.MachineKnown:
		fmt.Fprintf(w, "\nThe machine is the one in %s: the endorsement key and the attestation key match.\n", tpm.is.file)
	case len(tpm.known) == 0:
		fmt.Fprintf(w, "\nThe machine is not verified: only the log itself says that its attestation key is in the TPM of EK sha256:%s.\n"+
			"Challenge the machine (vouch node challenge) and give the result with --node.\n", v.EKSHA256)
	}
}
