package appraisal

import (
	"crypto/ecdsa"
	"fmt"
	"slices"
	"strings"

	"github.com/vouchd/vouchd/attest"
)

const resultVersion = 1

// A Result is an attestation result (RFC 9334): whether the evidence passed,
// each rule's own result and reason, and what the evidence established.
type Result struct {
	Version        int          `json:"version"`
	Passed         bool         `json:"passed"`
	Rules          []RuleResult `json:"rules"`
	EvidenceSHA256 string       `json:"evidence_sha256"`

	// What follows is set as far as it was proven. EKSHA256 is empty unless
	// the endorsement key is the policy's and activation bound it to the AK.
	EKSHA256 string `json:"ek_sha256,omitempty"`
	// PlatformAKSHA256 is the digest of the cloud's attestation key (DER
	// SubjectPublicKeyInfo) where the machine was accepted by that.
	PlatformAKSHA256 string          `json:"platform_ak_sha256,omitempty"`
	AKName           string          `json:"ak_name,omitempty"`
	Hostname         string          `json:"hostname,omitempty"` // the host's word
	Counter          uint64          `json:"counter,omitempty"`
	Bank             string          `json:"bank,omitempty"`
	PCRs             map[uint]string `json:"pcrs,omitempty"` // hexadecimal
	SecureBoot       bool            `json:"secure_boot"`
	BootState        BootState       `json:"boot_state"`

	nodeKey *ecdsa.PublicKey
}

// A RuleResult is what became of one rule.
type RuleResult struct {
	Rule   string `json:"rule"`
	Passed bool   `json:"passed"`
	Reason string `json:"reason"`
}

// NodeKey returns the node key that the evidence certified, nil if it did not.
func (r Result) NodeKey() *ecdsa.PublicKey { return r.nodeKey }

// Err returns nil if the evidence passed, and otherwise what did not.
func (r Result) Err() error {
	if r.Passed {
		return nil
	}
	var failed []string
	for _, rule := range r.Rules {
		if !rule.Passed {
			failed = append(failed, rule.Rule+": "+rule.Reason)
		}
	}
	return fmt.Errorf("the machine does not satisfy the policy: %s", strings.Join(failed, "; "))
}

// String returns one line for the result and one for each rule.
func (r Result) String() string {
	var b strings.Builder
	word := map[bool]string{true: "passed", false: "failed"}
	fmt.Fprintf(&b, "appraisal %s\n", word[r.Passed])
	for _, rule := range r.Rules {
		fmt.Fprintf(&b, "  %-6s  %s: %s\n", word[rule.Passed], rule.Rule, rule.Reason)
	}
	return b.String()
}

// Selectors returns the facts about the node that an entry can ask for. There
// are none unless the appraisal passed.
func (r Result) Selectors() attest.Selectors {
	if !r.Passed {
		return nil
	}
	var texts []string
	if r.EKSHA256 != "" {
		texts = append(texts, "tpm:ek:sha256:"+r.EKSHA256)
	}
	for pcr, value := range r.PCRs {
		if r.Bank == BankSHA256 {
			texts = append(texts, fmt.Sprintf("tpm:pcr:%d:%s", pcr, value))
		}
	}
	if r.SecureBoot {
		texts = append(texts, "tpm:secureboot:on")
	}
	texts = append(texts, "node:hostname:"+r.Hostname)
	slices.Sort(texts)
	var selectors attest.Selectors
	for _, text := range texts {
		// A hostname that no selector can have is none.
		if s, err := attest.ParseSelector(text); err == nil {
			selectors = append(selectors, s)
		}
	}
	return selectors
}
