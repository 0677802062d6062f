package appraisal

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/vouchd/vouchd/config"
)

// A Policy says which machines are acceptable and how they must have booted.
// What it does not name it does not accept: without endorsement nothing
// passes, and without a rule about the boot nothing passes unless BootState
// says that any will do.
type Policy struct {
	Endorsement EndorsementRule `yaml:"endorsement"`
	// BootState is "any" where only the machine's identity matters.
	BootState   string          `yaml:"boot_state" oneof:"named any" default:"named"`
	PCRs        []pcrValue      `yaml:"pcrs" like:"7:65caf8dd…"`
	SecureBoot  SecureBootRule  `yaml:"secure_boot"`
	CommandLine CommandLineRule `yaml:"kernel_command_line"`
	IMA         IMARule         `yaml:"ima"`
	// SHA1 accepts a quote of the SHA-1 bank from a TPM that has no other.
	SHA1 bool `yaml:"allow_sha1" default:"false"`
}

// EndorsementRule says whose TPM it may be: any that a root's owner certified,
// or one of a list. A root accepts a maker's every TPM, and a cloud's root every
// customer's machine, so name keys where they are known.
type EndorsementRule struct {
	Roots []certificate `yaml:"roots" like:"a certificate in PEM"`
	Keys  []digest      `yaml:"keys" like:"the ek_sha256 of vouch status"`
	// PlatformRoots are behind the attestation keys that some clouds certify
	// in place of endorsement keys.
	PlatformRoots []certificate `yaml:"platform_roots" like:"a certificate in PEM"`
	// Activation is "optional" where it need not be shown that attestation and
	// endorsement key are in one TPM. Then whoever knows an endorsement key's
	// public half can claim it.
	Activation string `yaml:"activation" oneof:"required optional" default:"required"`
}

// SecureBootRule asks for Secure Boot, with which keys if any are named.
type SecureBootRule struct {
	Required bool     `yaml:"required" default:"false"`
	Keys     []digest `yaml:"keys" like:"the SHA-256 digest of a certificate in DER"`
}

// CommandLineRule asks what the kernel was started with. A command line passes
// if one of Allow matches it whole (if there are any) and none of Forbid
// matches a part of it.
type CommandLineRule struct {
	Allow  []pattern `yaml:"allow" like:"root=/dev/sda1 ro quiet"`
	Forbid []pattern `yaml:"forbid" like:"init="`
	// MeasuredInto is the PCR that the machine's boot measures the line into. Root
	// can be the first to extend one that the boot leaves alone.
	MeasuredInto string `yaml:"measured_into" oneof:"any pcr8 pcr9 pcr12" default:"any"`
}

// into returns the one PCR that counts, zero if all do.
func (r CommandLineRule) into() uint {
	pcr, err := strconv.ParseUint(strings.TrimPrefix(r.MeasuredInto, "pcr"), 10, 8)
	if err != nil {
		return 0 // "any"
	}
	return uint(pcr)
}

// IMARule asks which files ran. Every measured file must be named by Allow (if
// there are any) and none by Forbid.
type IMARule struct {
	Allow  []imaPattern `yaml:"allow"`
	Forbid []imaPattern `yaml:"forbid"`
}

// ParsePolicy parses a policy. The file's name is for errors, which are of
// type [config.Errors].
func ParsePolicy(file string, data []byte) (Policy, error) {
	var p Policy
	err := config.Decode(file, data, &p)
	return p, err
}

func (r EndorsementRule) names() bool {
	return len(r.Roots)+len(r.Keys)+len(r.PlatformRoots) > 0
}

func (r SecureBootRule) names() bool { return r.Required || len(r.Keys) > 0 }

func (r CommandLineRule) names() bool { return len(r.Allow)+len(r.Forbid) > 0 }

func (r IMARule) names() bool { return len(r.Allow)+len(r.Forbid) > 0 }

// namesBoot reports whether the policy asks anything about the boot.
func (p Policy) namesBoot() bool {
	return len(p.PCRs) > 0 || p.SecureBoot.names() || p.CommandLine.names() || p.IMA.names()
}

// needsEventLog reports whether a rule can be judged by the event log only.
func (p Policy) needsEventLog() bool { return p.SecureBoot.names() || p.CommandLine.names() }

// values returns the accepted values of each PCR that the policy names.
func (p Policy) values() map[uint][]string {
	m := make(map[uint][]string)
	for _, v := range p.PCRs {
		m[v.pcr] = append(m[v.pcr], v.value)
	}
	return m
}

// A digest is a SHA-256 digest in lower-case hexadecimal.
type digest string

func (d *digest) UnmarshalText(text []byte) error {
	if b, err := hex.DecodeString(string(text)); err != nil || len(b) != 32 || strings.ToLower(string(text)) != string(text) {
		return errors.New("is not 64 lower-case hexadecimal digits")
	}
	*d = digest(text)
	return nil
}

// A pcrValue is one accepted value of a PCR, such as 7:65ca….
type pcrValue struct {
	pcr   uint
	value string
}

func (v *pcrValue) UnmarshalText(text []byte) error {
	pcr, value, ok := strings.Cut(string(text), ":")
	n, err := strconv.ParseUint(pcr, 10, 8)
	if !ok || err != nil || n >= uint64(len(AllPCRs)) || strconv.FormatUint(n, 10) != pcr {
		return errors.New("does not begin with a PCR, 0 to 23, and a colon")
	}
	b, err := hex.DecodeString(value)
	if err != nil || strings.ToLower(value) != value || len(b) != crypto.SHA256.Size() && len(b) != crypto.SHA1.Size() {
		return errors.New("does not have a digest in lower-case hexadecimal after the colon")
	}
	*v = pcrValue{uint(n), value}
	return nil
}

// A pattern is a regular expression (RE2, so that judging takes bounded time).
type pattern struct{ *regexp.Regexp }

func (p *pattern) UnmarshalText(text []byte) error {
	re, err := regexp.Compile(string(text))
	if err != nil {
		return fmt.Errorf("is not a regular expression: %w", err)
	}
	*p = pattern{re}
	return nil
}

// matchesWhole reports whether the pattern matches s from its beginning to its
// end.
func (p pattern) matchesWhole(s string) bool {
	re := regexp.MustCompile(`^(?:` + p.String() + `)$`)
	return re.MatchString(s)
}

// A certificate is written as one PEM block.
type certificate struct{ *x509.Certificate }

func (c *certificate) UnmarshalText(text []byte) error {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return errors.New("is not one certificate in PEM")
	}
	parsed, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("is not a certificate: %w", err)
	}
	*c = certificate{parsed}
	return nil
}

func pool(certificates []certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certificates {
		p.AddCert(c.Certificate)
	}
	return p
}

// learnedPCRs are those that change with firmware, boot loader and Secure Boot
// keys, and not with a boot menu or a partition.
var learnedPCRs = []uint{0, 2, 3, 4, 7}

// LearnPolicy writes a policy that the machine behind this evidence passes, for
// an administrator to review: it takes the machine as it is for good. It
// verifies the evidence, though not whose TPM it is from.
func LearnPolicy(evidenceJSON []byte) ([]byte, error) {
	e, err := parseEvidence(evidenceJSON)
	if err != nil {
		return nil, fmt.Errorf("learning a policy: %w", err)
	}
	if _, err := e.verify(); err != nil {
		return nil, fmt.Errorf("learning a policy: %w", err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Learned from %s at %s. Review every line: it accepts\n# this machine as it was then.\n",
		quoted(e.Host.Hostname), e.Host.MadeAt.Format("2006-01-02 15:04:05 MST"))
	fmt.Fprintf(&b, "endorsement:\n  keys:\n    - %q\n", e.EK.SHA256())
	if e.Bank == BankSHA1 {
		b.WriteString("allow_sha1: true # the TPM keeps no PCRs in SHA-256\n")
	}
	b.WriteString("# 0 and 2: firmware and option ROMs, 3: their settings, 4: boot loader, 7: Secure Boot\npcrs:\n")
	for _, pcr := range learnedPCRs {
		fmt.Fprintf(&b, "  - \"%d:%x\"\n", pcr, []byte(e.Quote.PCRs[pcr]))
	}
	e.learnBoot(&b)
	e.learnIMA(&b)
	return b.Bytes(), nil
}

// learnBoot writes a rule for what the event log proves, and says of each that it
// leaves out why.
func (e *Evidence) learnBoot(b *bytes.Buffer) {
	log, err := e.bootLog()
	if err == nil {
		err = log.Firmware()
	}
	if err != nil {
		notLearned(b, "secure_boot", err)
		notLearned(b, "kernel_command_line", err)
		return
	}
	s, err := log.SecureBoot()
	if err == nil && !s.On {
		err = errors.New("it is off")
	}
	if err == nil {
		b.WriteString("secure_boot:\n  required: true\n")
		if s.Hashes {
			notLearned(b, "secure_boot.keys", errors.New("programs may boot by their digest, without a key"))
		} else {
			b.WriteString("  keys:\n")
			for _, k := range s.Authorities {
				fmt.Fprintf(b, "    - %q\n", k)
			}
		}
	} else {
		notLearned(b, "secure_boot", err)
	}
	pcr, err := log.CommandLine(e.Host.CommandLine, 0)
	if err != nil {
		notLearned(b, "kernel_command_line", err)
		return
	}
	fmt.Fprintf(b, "kernel_command_line:\n  measured_into: pcr%d\n  allow:\n    - %s\n", pcr, quoted(regexp.QuoteMeta(e.Host.CommandLine)))
}

func (e *Evidence) learnIMA(b *bytes.Buffer) {
	entries, err := e.imaEntries()
	if len(e.IMA) == 0 {
		err = errors.New("the evidence has no list of measured files")
	}
	if err != nil {
		notLearned(b, "ima", err)
		return
	}
	b.WriteString("# Every file that ran; a * at a path's end stands for anything.\nima:\n  allow:\n")
	seen := make(map[string]bool)
	for _, entry := range entries {
		line := fmt.Sprintf("    - path: %s\n", quoted(entry.path))
		if entry.known() {
			line += fmt.Sprintf("      sha256: [%q]\n", strings.TrimPrefix(entry.digest, "sha256:"))
		} else {
			line += "      # any digest: the file was being written, or is not hashed with SHA-256\n"
		}
		if !seen[line] {
			seen[line] = true
			b.WriteString(line)
		}
	}
}

// notLearned says in a comment why a rule is not in a learned policy.
func notLearned(b *bytes.Buffer, rule string, why error) {
	fmt.Fprintf(b, "# No %s: %s\n", rule, quoted(why.Error()))
}

// quoted writes text as a YAML double-quoted scalar on one line.
func quoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r > '~':
			fmt.Fprintf(&b, "\\U%08x", r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
