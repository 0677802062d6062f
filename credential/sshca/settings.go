package sshca

import (
	"errors"
	"net/netip"
	"regexp"
	"strings"
	"unicode"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
)

// settings are the keys of a definition's ssh section.
type settings struct {
	CA            config.At[string]                `yaml:"ca" default:"default" like:"default"`
	Principals    []config.At[credential.Template] `yaml:"principals" like:"deploy"`
	Extensions    []config.At[string]              `yaml:"extensions" oneof:"no-touch-required permit-X11-forwarding permit-agent-forwarding permit-port-forwarding permit-pty permit-user-rc"`
	SourceAddress []config.At[string]              `yaml:"source_address" like:"192.0.2.0/24"`
	ForceCommand  config.At[string]                `yaml:"force_command" like:"/usr/local/bin/deploy"`
}

// extensions are those of OpenSSH.
var extensions = []string{"no-touch-required", "permit-X11-forwarding", "permit-agent-forwarding", "permit-port-forwarding", "permit-pty", "permit-user-rc"}

const (
	maxPrincipals = 64
	maxAddresses  = 64
	maxCommand    = 4096 // bytes
)

var (
	// authorityName leaves room for keyPrefix in the name of a TPM key.
	authorityName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,27}$`)
	// principalName is what a user or role is called; no comma, space or wildcard.
	principalName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@/:-]{0,254}$`)
)

func readSettings(d *credential.Definition, section config.Section) (s settings, err error) {
	if err := section.Decode(&s); err != nil {
		return s, err
	}
	var problems config.Errors
	if !authorityName.MatchString(s.CA.Value) {
		problems.Add(s.CA.Pos, "ca %.80q is not a name; use lower-case letters, digits and hyphens, at most 28", s.CA.Value)
	}
	s.principals(d, section, &problems)
	if len(s.SourceAddress) > maxAddresses {
		problems.Add(section.Pos, "source_address has %d networks and may have %d; remove some", len(s.SourceAddress), maxAddresses)
	}
	for _, a := range s.SourceAddress {
		if err := checkAddress(a.Value); err != nil {
			problems.Add(a.Pos, "source_address %.80q %v", a.Value, err)
		}
	}
	if c := s.ForceCommand; len(c.Value) > maxCommand || strings.ContainsFunc(c.Value, unicode.IsControl) {
		problems.Add(c.Pos, "force_command must be one line of at most %d bytes", maxCommand)
	}
	if d.MaxTTL > longest {
		problems.Add(section.Pos, "nothing takes a certificate back, so none lives longer than %s; shorten max_ttl", config.FormatDuration(longest))
	}
	for _, p := range d.Parameters {
		if p.Name == publicKey {
			problems.Add(section.Pos, "parameter %s is the broker's own; rename yours", publicKey)
		}
	}
	return s, problems.Err()
}

// principals checks that there are some: a certificate without any is good for
// every user.
func (s *settings) principals(d *credential.Definition, section config.Section, problems *config.Errors) {
	if len(s.Principals) == 0 {
		problems.Add(section.Pos, "principals is missing, and a certificate without any would be good for every user; list them, such as [deploy]")
	}
	if len(s.Principals) > maxPrincipals {
		problems.Add(section.Pos, "principals has %d names and may have %d; remove some", len(s.Principals), maxPrincipals)
	}
	values := make(map[string]string)
	for _, p := range d.Parameters {
		values[p.Name] = "x"
	}
	for _, p := range s.Principals {
		if err := p.Value.Check(d, nil); err != nil {
			problems.Add(p.Pos, "principals: %v", err)
			continue
		}
		if name, err := p.Value.Expand(values, quotePrincipal); err != nil || !principalName.MatchString(name) {
			problems.Add(p.Pos, "principals: %.80q is not a name", p.Value.String())
		}
	}
}

// quotePrincipal takes a value that is part of one name.
func quotePrincipal(_, value string) (string, error) {
	if !principalName.MatchString(value) {
		return "", errors.New("is not a principal's name")
	}
	return value, nil
}

func checkAddress(s string) error {
	if _, err := netip.ParseAddr(s); err == nil {
		return nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return errors.New("is not an address or a network; write it like 192.0.2.0/24")
	case p.Masked() != p:
		return errors.New("has bits behind the network's; write " + p.Masked().String())
	}
	return nil
}

// publicKey is the parameter by which a caller has its own key certified, so that
// the private half never leaves it.
const (
	publicKey = "public_key"
	newKey    = "new"
)

func publicKeyParameter() credential.Parameter {
	return credential.Parameter{
		Name: publicKey, Default: newKey,
		Pattern: regexp.MustCompile(`^(?:` + newKey + `|(?:ssh-ed25519|ecdsa-sha2-nistp256|ecdsa-sha2-nistp384|ecdsa-sha2-nistp521) [A-Za-z0-9+/]+={0,2})\z`),
	}
}
