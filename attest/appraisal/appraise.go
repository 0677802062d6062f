// Package appraisal judges what a machine's TPM says about it: the verifier of
// RFC 9334, and the organisation that signs machines into its trust domain.
//
// It works on bytes alone, on any machine: it opens no TPM, no file and no
// socket, and rules_test.go holds it to that. [Appraise] judges evidence by a
// [Policy], [VerifyStatement] the statement at the head of a log, [Challenge]
// and [VerifyActivation] are the verifier's side of credential activation, and
// an [Authority] approves what was appraised. The documents that the attester,
// package node, makes are defined here, beside what verifies them.
//
// A key counts by its attributes: what may sign as an attestation key or count
// as a counter is written as a template, and nothing is read from a structure
// before the signature of such a key held.
//
// What stays out of reach is the way between the machine and its TPM: evidence
// relayed from another machine's TPM looks like this machine's own, and only a
// policy that lists endorsement keys tells them apart.
package appraisal

import (
	"bytes"
	_ "crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/vouchd/vouchd/attest/appraisal/bootlog"
)

// Given is what a verifier knows besides the evidence and the policy.
type Given struct {
	Nonce      []byte      // that the verifier chose for this evidence
	Activation *Activation // from [VerifyActivation], if there was one
	Now        time.Time   // for the validity of certificates; the zero time is the present
	Previous   *BootState  // from an earlier result with the same AK, if any
}

// Appraise judges evidence by a policy and says why, rule by rule. It is pure:
// no TPM, no network, no files. Whatever it cannot establish fails.
func Appraise(evidenceJSON []byte, p Policy, given Given) Result {
	a := &appraisal{policy: p, given: given}
	sum := sha256.Sum256(evidenceJSON)
	a.result = Result{Version: resultVersion, EvidenceSHA256: hex.EncodeToString(sum[:])}
	e, err := parseEvidence(evidenceJSON)
	if !a.judge("evidence", "well-formed", err) {
		return a.result
	}
	a.evidence = e
	if a.judgePolicy() && a.judgeEvidence() {
		a.judgeEndorsement()
		a.judgePCRs()
		a.judgeBoot()
		a.judgeIMA()
	}
	a.result.Passed = len(a.result.Rules) > 0 &&
		!slices.ContainsFunc(a.result.Rules, func(r RuleResult) bool { return !r.Passed })
	return a.result
}

type appraisal struct {
	policy   Policy
	given    Given
	evidence *Evidence
	result   Result
}

// judge adds a rule's result: it passes, for the reason given, unless err is
// the reason that it does not.
func (a *appraisal) judge(rule, reason string, err error) bool {
	if err != nil {
		reason = err.Error()
	}
	a.result.Rules = append(a.result.Rules, RuleResult{Rule: rule, Passed: err == nil, Reason: reason})
	return err == nil
}

var errNoRule = errors.New("the policy names nothing that the machine must have")

func (a *appraisal) judgePolicy() bool {
	switch {
	case !a.policy.Endorsement.names():
		return a.judge("policy", "", fmt.Errorf("%w: endorsement has neither keys nor roots, so no machine passes", errNoRule))
	case !a.policy.namesBoot() && a.policy.BootState != "any":
		return a.judge("policy", "", fmt.Errorf("%w: no rule about its boot; if any boot state will do, write boot_state: any", errNoRule))
	}
	return true
}

// judgeEvidence establishes what all else rests on.
func (a *appraisal) judgeEvidence() bool {
	e := a.evidence
	if nonce, err := e.nonce(); err != nil || len(a.given.Nonce) < MinNonceLen || !bytes.Equal(nonce, a.given.Nonce) {
		return a.judge("nonce", "", fmt.Errorf("%w: the evidence was not made for the verifier's nonce", ErrNonce))
	}
	v, err := e.verify()
	if err == nil && e.Bank == BankSHA1 && !a.policy.SHA1 {
		err = errors.New("quote: of the SHA-1 bank, which the policy does not allow")
	}
	if err == nil && a.given.Previous != nil {
		err = a.given.Previous.before(v.state)
	}
	if !a.judge("quote", fmt.Sprintf("fresh, signed by attestation key %s, of the %s bank", v.akName, e.Bank), err) {
		return false
	}
	a.result.AKName, a.result.Counter, a.result.BootState = v.akName, v.counter, v.state
	a.result.Hostname, a.result.Bank = e.Host.Hostname, e.Bank
	a.result.nodeKey = v.nodeKey
	a.result.PCRs = make(map[uint]string, len(e.Quote.PCRs))
	for pcr, value := range e.Quote.PCRs {
		a.result.PCRs[pcr] = hex.EncodeToString(value)
	}
	return true
}

// before returns an error if a state cannot have come after s in one TPM.
// Counts wrap around, so nearness tells which is the later.
func (s BootState) before(later BootState) error {
	switch resets := int32(later.Resets - s.Resets); {
	case resets < 0:
		return fmt.Errorf("quote: %w: the TPM was reset fewer times than before", ErrNonce)
	case resets == 0 && int32(later.Restarts-s.Restarts) < 0:
		return fmt.Errorf("quote: %w: the TPM was restarted fewer times than before", ErrNonce)
	case resets == 0 && later.Clock < s.Clock:
		return fmt.Errorf("quote: %w: the TPM's clock went back without a reset", ErrNonce)
	}
	return nil
}

// judgeEndorsement judges whose TPM it is. Either the endorsement key is known
// or certified, and activation shows that the AK is in the same TPM; or the
// cloud certified an attestation key that says so.
func (a *appraisal) judgeEndorsement() {
	e, rule := a.evidence, a.policy.Endorsement
	var platform error
	if e.Platform != nil {
		key, err := a.platform()
		if err == nil {
			a.result.PlatformAKSHA256 = key
			a.judge("endorsement", "the platform's attestation key "+key+" is accepted and says that ours is in its TPM", nil)
			return
		}
		platform = err
	}
	ek := e.EK.SHA256()
	var err error
	reason := "endorsement key " + ek + " is in the policy"
	if !slices.Contains(rule.Keys, digest(ek)) {
		reason, err = a.certified()
	}
	if err != nil && len(rule.PlatformRoots) > 0 && platform != nil {
		err = fmt.Errorf("platform's attestation key: %w; and %w", platform, err)
	}
	known := a.judge("endorsement", reason, err)
	bound := a.given.Activation != nil && a.given.Activation.EKSHA256 == ek && a.given.Activation.AKName == a.result.AKName
	switch {
	case bound:
		a.judge("activation", "attestation key and endorsement key are in one TPM", nil)
	case a.given.Activation != nil:
		a.judge("activation", "", fmt.Errorf("%w: it was about other keys", ErrActivation))
	case rule.Activation == "optional":
		a.judge("activation", "not shown, and the policy does not ask for it", nil)
	default:
		a.judge("activation", "", fmt.Errorf("%w: there was no challenge; see vouch node challenge", ErrActivation))
	}
	if known && bound {
		a.result.EKSHA256 = ek
	}
}

// certified judges the endorsement key by its certificate.
func (a *appraisal) certified() (reason string, err error) {
	e, rule := a.evidence, a.policy.Endorsement
	if _, err := e.EK.key(); err != nil {
		return "", err
	}
	if len(rule.Roots) == 0 {
		return "", fmt.Errorf("endorsement key %s is not among the policy's keys", e.EK.SHA256())
	}
	if len(e.EK.Certificates) == 0 {
		return "", fmt.Errorf("%w: the evidence has none for the endorsement key (vouch doctor, on the machine, names one that is of no use); list the key under endorsement.keys", ErrCertificate)
	}
	c, err := e.EK.Certificate()
	if err != nil {
		return "", err
	}
	model, err := verifyEKCertificate(c, e.EK.Certificates[1:], pool(rule.Roots), a.given.Now)
	if err != nil {
		return "", err
	}
	return "the endorsement key is certified: " + model.String(), nil
}

// platform judges the platform's attestation key and returns its digest: it is
// in the policy, or certified.
func (a *appraisal) platform() (string, error) {
	p, rule := a.evidence.Platform, a.policy.Endorsement
	ak, err := Structure[tpm2.TPMTPublic](a.evidence.AK.Public)
	if err != nil {
		return "", err
	}
	key, err := p.verify(ak)
	if err != nil {
		return "", err
	}
	sum := keySHA256(key)
	if slices.Contains(rule.Keys, digest(sum)) {
		return sum, nil
	}
	return sum, p.verifyCertificate(key, pool(rule.PlatformRoots), a.given.Now)
}

func (a *appraisal) judgePCRs() {
	accepted := a.policy.values()
	for _, pcr := range slices.Sorted(maps.Keys(accepted)) {
		rule, value := fmt.Sprintf("PCR %d", pcr), a.result.PCRs[pcr]
		var err error
		if !slices.Contains(accepted[pcr], value) {
			err = fmt.Errorf("%s is none of the %d accepted", value, len(accepted[pcr]))
		}
		a.judge(rule, value+" is accepted", err)
	}
}

// judgeBoot judges what only the event log can tell. Where no rule needs it, a
// log that explains nothing is as good as none.
func (a *appraisal) judgeBoot() {
	e := a.evidence
	log, err := e.bootLog()
	if err == nil {
		err = log.Firmware()
	}
	if a.policy.needsEventLog() {
		a.judge("event log", "explains what the firmware measured", err)
	}
	if err != nil {
		return
	}
	s, err := log.SecureBoot()
	a.result.SecureBoot = err == nil && s.On
	if a.policy.SecureBoot.names() {
		if err == nil {
			err = a.policy.SecureBoot.judge(s)
		}
		a.judge("secure boot", "on, with accepted keys", err)
	}
	if a.policy.CommandLine.names() {
		pcr, err := log.CommandLine(e.Host.CommandLine, a.policy.CommandLine.into())
		if err == nil {
			err = a.policy.CommandLine.judge(e.Host.CommandLine)
		}
		a.judge("kernel command line", fmt.Sprintf("accepted, as measured into PCR %d", pcr), err)
	}
}

func (r SecureBootRule) judge(s bootlog.SecureBoot) error {
	if !s.On {
		return errors.New("it is off")
	}
	if len(r.Keys) == 0 {
		return nil
	}
	if s.Hashes {
		return errors.New("programs may boot by their digest, without a key")
	}
	if len(s.Authorities) == 0 {
		return errors.New("no key was used")
	}
	for _, k := range s.Authorities {
		if !slices.Contains(r.Keys, digest(k)) {
			return fmt.Errorf("certificate %s verified what was booted and is not accepted", k)
		}
	}
	return nil
}

func (r CommandLineRule) judge(line string) error {
	for _, p := range r.Forbid {
		if p.MatchString(line) {
			return fmt.Errorf("%q is forbidden by %q", line, p)
		}
	}
	if len(r.Allow) > 0 && !slices.ContainsFunc(r.Allow, func(p pattern) bool { return p.matchesWhole(line) }) {
		return fmt.Errorf("%q is not among the accepted", line)
	}
	return nil
}

func (a *appraisal) judgeIMA() {
	if !a.policy.IMA.names() {
		return
	}
	entries, err := a.evidence.imaEntries()
	if err == nil {
		err = a.policy.IMA.judge(entries)
	}
	a.judge("ima", fmt.Sprintf("all %d measured files are accepted", len(entries)), err)
}

func (r IMARule) judge(entries []imaEntry) error {
	for _, e := range entries {
		forbids := func(p imaPattern) bool { return p.forbids(e) }
		allows := func(p imaPattern) bool { return p.allows(e) }
		switch {
		case slices.ContainsFunc(r.Forbid, forbids):
			return fmt.Errorf("%q (%s) is forbidden", e.path, e.digest)
		case len(r.Allow) > 0 && !slices.ContainsFunc(r.Allow, allows):
			return fmt.Errorf("%q (%s) is not among the accepted", e.path, e.digest)
		}
	}
	return nil
}

// VerifyEK verifies the endorsement key's certificate against roots, with
// certificates that lie between (DER) besides those in the statement.
func (v *Verified) VerifyEK(roots *x509.CertPool, between [][]byte, now time.Time) error {
	c, err := v.ek.Certificate()
	if err == nil && c == nil {
		err = fmt.Errorf("%w: the endorsement key has no certificate", ErrCertificate)
	}
	if err == nil {
		_, err = verifyEKCertificate(c, append(v.ek.Certificates[1:len(v.ek.Certificates):len(v.ek.Certificates)], between...), roots, now)
	}
	if err != nil {
		return fmt.Errorf("verifying the endorsement key: %w", err)
	}
	return nil
}
