package gate

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/attest"
	"github.com/vouchd/vouchd/attest/process"
	"github.com/vouchd/vouchd/identity"
)

// Rules are what is in force: the registration entries, what was attested of the
// machine, and the identities that are disabled.
type Rules struct {
	entries  atomic.Pointer[identity.Entries]
	node     atomic.Pointer[nodeState]
	disabled atomic.Pointer[map[string]Disabled] // by SPIFFE ID; never nil
	heldBack atomic.Pointer[string]              // never nil

	mu      sync.Mutex    // guards changed
	changed chan struct{} // closed and replaced when any of them changes
}

// nodeState is what is known of the machine. It is immutable.
type nodeState struct {
	selectors attest.Selectors
	refusal   error // why nobody is issued anything
}

// A Disabled is an identity that an administrator has cut off. An entry for it
// entitles nobody.
type Disabled struct {
	SPIFFEID string    `json:"spiffe_id"`
	Since    time.Time `json:"since"`
	By       uint32    `json:"by"` // the administrator's user ID
	Reason   string    `json:"reason,omitempty"`
}

func newRules() *Rules {
	r := &Rules{changed: make(chan struct{})}
	r.entries.Store(new(identity.Entries))
	r.node.Store(new(nodeState))
	r.disabled.Store(new(map[string]Disabled))
	r.heldBack.Store(new(string))
	return r
}

// SetEntries replaces the registration entries. Open streams whose identities
// they change are sent the new ones, or ended.
func (r *Rules) SetEntries(es *identity.Entries) {
	r.entries.Store(es)
	r.tellChanged()
}

// SetHeldBack says why newer entries are not in force: whoever is refused for want of an
// entry may be meant by one of them. Empty: there are none.
func (r *Rules) SetHeldBack(why string) { r.heldBack.Store(&why) }

// HeldBack returns why newer entries are not in force; empty: there are none.
func (r *Rules) HeldBack() string { return *r.heldBack.Load() }

// SetNode says what was attested about the machine: its selectors are added to those
// of every process before entries are matched. With a refusal, nothing is issued:
// open streams end and calls are refused with that reason, until SetNode is called
// without one. Once it has returned, no call that has yet to pass its last check gets
// an answer.
func (r *Rules) SetNode(selectors attest.Selectors, refusal error) {
	r.node.Store(&nodeState{selectors, refusal})
	r.tellChanged()
}

// SetDisabled replaces the identities that are cut off. When it returns, no call
// that is yet to pass its last check gets an answer under one of them, and open
// streams under them are about to end or to be sent what is left.
func (r *Rules) SetDisabled(list []Disabled) {
	m := make(map[string]Disabled, len(list))
	for _, d := range list {
		m[d.SPIFFEID] = d
	}
	r.disabled.Store(&m)
	r.tellChanged()
}

func (r *Rules) tellChanged() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.changed)
	r.changed = make(chan struct{})
}

// Changed returns a channel that is closed at the next change. To miss none,
// take it before reading the rules.
func (r *Rules) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// Entries returns the registration entries.
func (r *Rules) Entries() []identity.Entry { return r.entries.Load().All() }

// Wants returns what the entries in force still want to know of a process, as
// [identity.Entries.Wants] does.
func (r *Rules) Wants(have attest.Selectors, upTo attest.Stage) attest.KindSet {
	return r.entries.Load().Wants(have, upTo)
}

// Disabled returns the identities that are cut off, by name.
func (r *Rules) Disabled() []Disabled {
	return slices.SortedFunc(maps.Values(*r.disabled.Load()), func(a, b Disabled) int { return strings.Compare(a.SPIFFEID, b.SPIFFEID) })
}

// DisabledAs returns how an identity is cut off, if it is.
func (r *Rules) DisabledAs(id spiffeid.ID) (Disabled, bool) {
	d, ok := (*r.disabled.Load())[id.String()]
	return d, ok
}

// Refusal returns nil, or why nothing is issued now.
func (r *Rules) Refusal() error {
	if err := r.node.Load().refusal; err != nil {
		return fmt.Errorf("%w: %w", ErrNode, err)
	}
	return nil
}

// Selectors returns all facts about a process: its own and its machine's.
func (r *Rules) Selectors(p *process.Attested) attest.Selectors {
	return append(p.Selectors[:len(p.Selectors):len(p.Selectors)], r.node.Load().selectors...)
}

// Matching returns the entries that a process matches, one for each SPIFFE ID,
// the default identity first (Workload API §8), whether disabled or not.
func (r *Rules) Matching(p *process.Attested) []identity.Entry {
	seen := make(map[spiffeid.ID]bool)
	return slices.DeleteFunc(r.entries.Load().Match(r.Selectors(p)), func(e identity.Entry) bool {
		again := seen[e.ID]
		seen[e.ID] = true
		return again
	})
}

// NearMisses returns the entries that a process does not match, those that lack
// least first, as [identity.Entries.NearMisses] does.
func (r *Rules) NearMisses(p *process.Attested, most int) []identity.NearMiss {
	return r.entries.Load().NearMisses(r.Selectors(p), most)
}

// Entitled returns the entries by which a process is entitled, the default
// identity first: of those that it matches, those that count (nil: all do) and
// are not disabled. Without one the error is [ErrNoIdentity] or [ErrDisabled].
func (r *Rules) Entitled(p *process.Attested, counts func(identity.Entry) bool) (entries []identity.Entry, err error) {
	err = ErrNoIdentity
	for _, e := range r.Matching(p) {
		_, disabled := r.DisabledAs(e.ID)
		switch {
		case counts != nil && !counts(e):
		case !disabled:
			entries = append(entries, e)
		case err == ErrNoIdentity:
			err = fmt.Errorf("%w: %s", ErrDisabled, e.ID)
		}
	}
	if len(entries) > 0 {
		return entries, nil
	}
	return nil, err
}

// cutOff returns an error if an identity was disabled after its entry had matched.
func (r *Rules) cutOff(entries []identity.Entry) error {
	for _, e := range entries {
		if _, ok := r.DisabledAs(e.ID); ok {
			return fmt.Errorf("%w: %s", ErrDisabled, e.ID)
		}
	}
	return nil
}
