package credential

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// An Ask is what a workload asks for.
type Ask struct {
	Name      string            // of the credential
	Granted   []string          // what the identity's entries grant
	Params    map[string]string // as the caller chose them
	TTL       time.Duration     // 0 for the definition's
	RequestID string            // ties the events together
	Exposure  Exposure          // where the value goes, as far as the caller says
	Asker     *Asker            // in every event of the ask; nil if there is none to name
	// Reuse takes an earlier lease to the same identity, for the same parameters,
	// that has at least half of its life left. It is for credential helpers, which
	// exit before their answer is used.
	Reuse bool
}

// A Renewal is what a holder asks for a lease that it has.
type Renewal struct {
	Lease     string        // its ID
	TTL       time.Duration // from now; 0 for the definition's
	RequestID string
	Asker     *Asker
}

// An Asker is the attested process that requested a step, as the log records it.
// Unlike with a [Holder], nothing is decided by it: it passes from what attested the
// process to what records. Its fields are those of a record's workload.
type Asker struct {
	PID       int
	StartTime uint64
	UID, GID  uint32
	Path      string // of the running program
	SHA256    string // of the running program, hexadecimal
	Device    uint64
	Inode     uint64
	Cgroup    string
	Unit      string
	Selectors []string
	Entry     string // the registration entry that grants: file:line
}

// A Grant is a lease and, this once, the values.
type Grant struct {
	Lease  Lease
	Fields []Field
	Reused bool // others have it too
}

// Wipe overwrites the values. A nil Grant has none.
func (g *Grant) Wipe() {
	if g == nil {
		return
	}
	for _, f := range g.Fields {
		f.Value.Wipe()
	}
}

// Where chooses leases by what is set; what is not set does not matter. With
// nothing set it chooses none.
type Where struct {
	All        bool
	Lease      string
	Identity   spiffeid.ID
	Credential string
}

// Chooses reports whether a lease is chosen.
func (w Where) Chooses(l *Lease) bool {
	if w == (Where{}) {
		return false
	}
	return w.All || (w.Lease == "" || w.Lease == l.ID) &&
		(w.Identity.IsZero() || w.Identity == l.Identity) &&
		(w.Credential == "" || w.Credential == l.Credential)
}
