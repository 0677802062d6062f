package workloadapi

import (
	"fmt"
	"strings"

	"github.com/vouchd/vouchd/attest"
	"github.com/vouchd/vouchd/attest/process"
)

// nodeState is what is known of the machine. It is immutable.
type nodeState struct {
	selectors attest.Selectors
	refusal   error // why nobody is issued anything
}

// SetNode says what was attested of the machine: its selectors are added to
// those of every process before entries are matched. With a refusal nobody is
// issued anything: open streams end and calls are refused with that reason,
// until SetNode is called without one. When it returns, no call that is yet to
// pass its last check gets an answer.
func (s *Server) SetNode(selectors attest.Selectors, refusal error) {
	s.node.Store(&nodeState{selectors, refusal})
	s.tellChanged()
}

// refusal returns nil, or why nobody is issued anything now.
func (s *Server) refusal() error {
	if err := s.node.Load().refusal; err != nil {
		return fmt.Errorf("%w: %w", errNode, err)
	}
	return nil
}

// selectors returns all facts about a process: its own and its machine's.
func (s *Server) selectors(p *process.Attested) attest.Selectors {
	of := s.node.Load().selectors
	return append(p.Selectors[:len(p.Selectors):len(p.Selectors)], of...)
}

// changesGrants reports whether entries or the node now mean something else
// for a process than what it was granted.
func (s *Server) changesGrants(c *caller) bool {
	return s.refusal() != nil || !sameGrants(c.entries, s.match(c.process))
}

// nodeRefusal is what a caller is told: which rules failed is no secret, the
// host's administrator may be who reads it, and a status has to stay short.
func nodeRefusal(err error) string {
	const most = 400 // bytes
	text := err.Error()
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}
