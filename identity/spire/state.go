package spire

import "time"

// A State is how it stands with the server.
type State struct {
	Server   string // host and port
	Attestor string
	Agent    string // this host's SPIFFE ID; empty: the server has not attested it

	AgentUntil time.Time // end of the agent's SVID
	Online     bool
	Since      time.Time // of being online or away
	LastSync   time.Time // when the server last said which entries there are
	Failure    error     // why the last attempt failed; nil: it did not
	Banned     bool      // nothing is served, and the server not asked any more
	Refused    bool      // nothing is served: the server has refused to attest this host, whose SVID is over

	Entries    int
	Unknown    []string // entries that match nothing here, and why
	Unanchored []string // SPIFFE IDs that any user of this machine can have

	// If the server stayed away: the end of the last X509-SVID, of the last JWT-SVID that is
	// kept, and of serving anything new. Zero: there is none.
	X509Until, JWTUntil, EntriesUntil time.Time

	CA             CA // the host's own, where Options.Downstream is set
	BundleSequence uint64
	Skew           time.Duration // of this machine's clock against the server's, ahead is positive
}

// State returns how it stands.
func (k *Keeper) State() State {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.state
	if k.agent != nil {
		s.Agent, s.AgentUntil = k.agent.id.String(), k.agent.until()
	}
	s.Entries, s.Unknown, s.Unanchored = len(k.entries.list), k.entries.unknown, k.entries.unanchored
	if k.bundle != nil {
		s.BundleSequence = k.bundle.Sequence
	}
	if !s.LastSync.IsZero() {
		s.EntriesUntil = k.staleFrom()
	}
	for _, h := range k.x509 {
		s.X509Until = later(s.X509Until, h.svid.NotAfter)
	}
	for _, h := range k.jwt {
		s.JWTUntil = later(s.JWTUntil, h.svid.ExpiresAt)
	}
	s.X509Until, s.JWTUntil = earlier(s.X509Until, s.EntriesUntil), earlier(s.JWTUntil, s.EntriesUntil)
	if s.Refused {
		s.X509Until, s.JWTUntil, s.EntriesUntil = time.Time{}, time.Time{}, time.Time{}
	}
	return s
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
