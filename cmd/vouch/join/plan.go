package join

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"go.yaml.in/yaml/v3"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/identity/spire"
	"github.com/vouchd/vouchd/state"
)

// A plan is what is to be changed on this host, in order. A crash between two steps leaves
// a host that goes on as before.
type plan struct {
	roots []*x509.Certificate
	steps []step
	back  string // how
}

type step struct {
	says string
	do   func(context.Context) error
}

func (p *plan) add(do func(context.Context) error, format string, args ...any) {
	p.steps = append(p.steps, step{fmt.Sprintf(format, args...), do})
}

// plan holds what is there against what is to be there.
func (c *command) plan(now *config.Config) (*plan, error) {
	bundle, err := os.ReadFile(c.bundle)
	if err != nil {
		return nil, err
	}
	p := &plan{roots: spire.ParseRoots(now.TrustDomain, bundle)}
	if len(p.roots) == 0 {
		return nil, fmt.Errorf("%s has no certificate, in PEM or in a SPIFFE bundle; save there what spire-server bundle show prints", c.bundle)
	}
	text, err := config.ReadFile(c.Config)
	if err != nil {
		return nil, err
	}
	edited, err := edit(text, c.server, c.attestor)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Config, err)
	}
	next, err := config.Parse(c.Config, edited)
	if err != nil {
		return nil, fmt.Errorf("with what is to be changed the configuration would not be valid: %w", err)
	}
	s := next.Authority.SPIRE
	if old, err := os.ReadFile(s.BundleFile); err != nil || !bytes.Equal(old, bundle) {
		p.add(func(context.Context) error { return state.ReplaceFileDurably(s.BundleFile, bundle, state.Mode(0o644)) }, "install the bundle as %s", s.BundleFile)
	}
	if c.attestor == config.AttestorJoinToken && c.token != "" {
		if err := p.moveToken(c.token, s.TokenFile, next.StateDir); err != nil {
			return nil, err
		}
	}
	if !bytes.Equal(text, edited) {
		backup := c.Config + ".before-join"
		p.back = fmt.Sprintf("mv %s %s, and restart the daemon", backup, c.Config)
		p.add(func(context.Context) error { return state.ReplaceFileDurably(backup, text, state.Mode(0o644)) }, "keep %s as %s", c.Config, filepath.Base(backup))
		p.add(func(context.Context) error { return state.ReplaceFileDurably(c.Config, edited, state.Mode(0o644)) }, "set authority.mode: spire in %s", c.Config)
	}
	if p.back == "" {
		p.back = "set authority.mode to what it was, and restart the daemon"
	}
	if len(p.steps) > 0 && underSystemd() && c.Config == "/etc/vouchd/vouchd.yaml" {
		p.add(restart, "restart vouchd")
	}
	return p, nil
}

// moveToken puts the token where the daemon, and nobody else, can read and delete it.
func (p *plan) moveToken(from, to, stateDir string) error {
	token, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	info, err := os.Stat(stateDir)
	if err != nil {
		return fmt.Errorf("%w; start the daemon once before it joins", err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	p.add(func(context.Context) error {
		if err := state.ReplaceFileDurably(to, token, state.Ownership{Mode: 0o600, UID: int(owner.Uid), GID: int(owner.Gid)}); err != nil {
			return err
		}
		return os.Remove(from)
	}, "move the join token from %s to %s", from, to)
	return nil
}

// edit returns vouchd.yaml with authority.mode spire, and everything else as it is, comments
// among it. A file that says so already is returned to the byte.
func edit(text []byte, server, attestor string) ([]byte, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, fmt.Errorf("it is not a mapping of keys to values")
	}
	authority := child(doc.Content[0], "authority")
	if authority == nil {
		sep := ""
		if len(text) > 0 && text[len(text)-1] != '\n' {
			sep = "\n"
		}
		return fmt.Appendf(text[:len(text):len(text)], "%s\nauthority:\n  mode: spire\n  spire:\n    server: %s\n    attestor: %s\n", sep, server, attestor), nil
	}
	if authority.Kind != yaml.MappingNode {
		*authority = yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	}
	changed := set(authority, "mode", config.ModeSPIRE)
	spire := child(authority, "spire")
	if spire == nil || spire.Kind != yaml.MappingNode {
		spire = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		authority.Content = append(authority.Content, scalar("spire"), spire)
	}
	changed = set(spire, "server", server) || changed
	changed = set(spire, "attestor", attestor) || changed
	if !changed {
		return text, nil
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return nil, err
	}
	return b.Bytes(), enc.Close()
}

// child returns the value of a key; nil: there is none.
func child(of *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(of.Content); i += 2 {
		if of.Content[i].Value == key {
			return of.Content[i+1]
		}
	}
	return nil
}

// set sets a key, and reports whether it had another value.
func set(of *yaml.Node, key, value string) bool {
	old := child(of, key)
	switch {
	case old == nil:
		of.Content = append(of.Content, scalar(key), scalar(value))
	case old.Kind == yaml.ScalarNode && old.Value == value:
		return false
	default:
		comment := old.LineComment
		*old = *scalar(value)
		old.LineComment = comment
	}
	return true
}

func scalar(value string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: value}
}
