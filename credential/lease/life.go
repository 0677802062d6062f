package lease

import (
	"fmt"

	"github.com/vouchd/vouchd/credential"
)

// A stage is how far along its life a lease is. Administrators and the journal
// see the coarser [credential.State] (shown): a crash leaves nothing to tell the
// stages of one state apart.
type stage uint8

const (
	reserved stage = iota // counted against the limits; nothing of it is upstream or on disk
	planned               // written down; the upstream may or may not have been asked
	issued                // the upstream gave it; its holder has no answer yet
	active                // handed out
	renewing              // handed out, and the upstream is asked for longer
	revoking              // being ended, until the upstream confirms or its clock has
	stuck                 // being ended, in spite of many attempts that failed
	revoked               // the upstream confirmed its end
	expired               // the upstream ended it by its own clock
	dropped               // ended before anything was planned
	stages   = iota
)

var shown = [stages]credential.State{
	reserved: credential.Planned, planned: credential.Planned,
	issued: credential.Active, active: credential.Active, renewing: credential.Active,
	revoking: credential.Revoking, stuck: credential.Stuck,
	revoked: credential.Revoked, expired: credential.Expired, dropped: credential.Revoked,
}

// stageOf is where a lease from the journal continues. One in a state that this
// version does not know is ended.
func stageOf(s credential.State) stage {
	switch s {
	case credential.Planned:
		return planned
	case credential.Active:
		return active
	case credential.Stuck:
		return stuck
	}
	return revoking
}

// An event is what can happen to a lease.
type event uint8

const (
	plan    event = iota // its handle is known, and the upstream is about to be asked
	refuse               // the upstream said no, or nothing
	issue                // the upstream gave the credential
	renew                // its holder asks for longer, and the upstream is about to be
	extend               // the upstream agreed
	handOut              // the request is over, and the holder has the lease
	letGo                // the request is over, and the lease is to end
	end                  // it is to end: expiry, revocation, its holder's exit
	attempt              // a worker takes it in hand to end it
	await                // the upstream can only let it expire
	fail                 // the attempt failed
	giveUp               // the attempt failed, as many did before
	confirm              // the upstream confirmed its end
	runOut               // the upstream's clock has ended it
	events  = iota
)

var eventNames = [events]string{"plan", "refuse", "issue", "renew", "extend", "hand out", "let go", "end", "attempt", "await", "fail", "give up", "confirm", "run out"}

// A must is what has to be durable before an event counts.
type must uint8

const (
	nothing   must = iota
	journaled      // the lease as it is now, in the journal
	recorded       // an event, in the log
	both           // one in each, side by side: neither means anything alone
	closed         // an event, in the log; only then does the lease leave the journal and its stage change
)

// A turn is what an event does to a lease in one stage.
type turn struct {
	decision decision
	to       stage
	must     must
}

type decision uint8

const (
	undecided decision = iota
	taken
	deferred // the request that is under way takes it up when it is over
	refused
)

func to(s stage, m must) turn { return turn{decision: taken, to: s, must: m} }

var (
	later = turn{decision: deferred}
	never = turn{decision: refused}
)

// life is the whole life of a lease. A pair without a decision is a mistake that
// a test finds.
var life = [stages][events]turn{
	// While its holder's request is under way, that request alone moves a lease.
	reserved: {
		plan: to(planned, both), refuse: to(reserved, recorded), letGo: to(dropped, nothing), end: later,
		issue: never, renew: never, extend: never, handOut: never,
		attempt: never, await: never, fail: never, giveUp: never, confirm: never, runOut: never,
	},
	planned: {
		issue: to(issued, both), refuse: to(planned, recorded), letGo: to(revoking, nothing), end: later,
		plan: never, renew: never, extend: never, handOut: never,
		attempt: never, await: never, fail: never, giveUp: never, confirm: never, runOut: never,
	},
	issued: {
		handOut: to(active, nothing), letGo: to(revoking, nothing), end: later,
		plan: never, refuse: never, issue: never, renew: never, extend: never,
		attempt: never, await: never, fail: never, giveUp: never, confirm: never, runOut: never,
	},
	active: {
		renew: to(renewing, journaled), end: to(revoking, nothing),
		plan: never, refuse: never, issue: never, extend: never, handOut: never, letGo: never,
		attempt: never, await: never, fail: never, giveUp: never, confirm: never, runOut: never,
	},
	renewing: {
		extend: to(renewing, both), refuse: to(renewing, recorded), handOut: to(active, nothing), letGo: to(revoking, nothing), end: later,
		plan: never, issue: never, renew: never,
		attempt: never, await: never, fail: never, giveUp: never, confirm: never, runOut: never,
	},

	// From here on a worker moves it, and nothing brings it back.
	revoking: {
		end: to(revoking, nothing), attempt: to(revoking, journaled), await: to(revoking, nothing),
		fail: to(revoking, nothing), giveUp: to(stuck, both), confirm: to(revoked, closed), runOut: to(expired, closed),
		plan: never, refuse: never, issue: never, renew: never, extend: never, handOut: never, letGo: never,
	},
	stuck: {
		end: to(stuck, nothing), attempt: to(stuck, journaled), await: to(stuck, nothing),
		fail: to(stuck, nothing), confirm: to(revoked, closed), runOut: to(expired, closed),
		plan: never, refuse: never, issue: never, renew: never, extend: never, handOut: never, letGo: never,
		giveUp: never, // said once
	},
	revoked: over,
	expired: over,
	dropped: over,
}

var over = [events]turn{
	plan: never, refuse: never, issue: never, renew: never, extend: never, handOut: never, letGo: never,
	end: never, attempt: never, await: never, fail: never, giveUp: never, confirm: never, runOut: never,
}

// take moves a lease as the table says, and returns what must be made durable
// for that. It is the one place where a lease changes its stage. The book's mu
// is held.
func (l *lease) take(e event) (must, error) {
	t := life[l.stage][e]
	switch t.decision {
	case taken:
		l.stage, l.State = t.to, shown[t.to]
		return t.must, nil
	case deferred:
		l.recalled = true
		return nothing, nil
	}
	return nothing, fmt.Errorf("lease of %s is %s, which has no way to %s", l.Credential, l.State, eventNames[e])
}

// inRequest reports whether a request of the holder has the lease in hand.
func (l *lease) inRequest() bool { return life[l.stage][end].decision == deferred }

// ending reports whether the end of the lease has begun, or will once a request
// of its holder is over.
func (l *lease) ending() bool { return l.recalled || l.stage >= revoking }
