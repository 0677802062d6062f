package drill

import (
	"fmt"
	"time"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// A Verdict is what one process made of it.
type Verdict struct {
	view.DrillHolder
	Verdict string `json:"verdict"` // one of those below
	Did     string `json:"did"`
	Back    string `json:"back"`
	OK      bool   `json:"ok"` // it coped
}

// What a process may do.
const (
	ended   = "ended"   // its process, after the pull
	stopped = "stopped" // asking, after it was refused once
	pauses  = "pauses"  // between attempts
	loops   = "loops"   // without
	silent  = "silent"  // asked for nothing, and so has not shown what it does
)

// What counts as a loop: so many attempts, at more than one a second.
const (
	loopAttempts = 5
	loopEvery    = time.Second
)

// judge says what each process did, and whether it coped: it stopped, or tried again with
// pauses, and was served again if it asked.
func judge(d view.Drill) (all []Verdict) {
	for _, h := range d.Holders {
		if h.First.IsZero() && !h.Held {
			continue // it came after the end
		}
		v := Verdict{DrillHolder: h}
		v.Verdict, v.Did = did(d, h)
		if h.Value {
			v.Did += "; " + upstream(d, h)
		}
		v.OK = v.Verdict != loops && v.Verdict != silent
		switch {
		case !h.Exited.IsZero() && restarted(d, h):
			v.Back = "its process has ended, and another of its identity was served again"
		case !h.Exited.IsZero():
			v.Back = "its process has ended"
		case !h.Recovered.IsZero():
			v.Back = fmt.Sprintf("was served again %s after the end", h.Recovered.Sub(d.Ended).Round(time.Second/10))
		case h.Asks+h.Calls > 0:
			v.Back, v.OK = "has not been served again", false
		default:
			v.Back = "has not asked again"
		}
		all = append(all, v)
	}
	return all
}

// did says what a process did until the end.
func did(d view.Drill, h view.DrillHolder) (verdict, text string) {
	attempts, took := h.Asks+h.Calls, h.Last.Sub(h.First)
	what := "asks and calls"
	switch {
	case h.Asks == 0:
		what = "calls with the handle that it has"
	case h.Calls == 0:
		what = "asks"
	}
	switch gone := !h.Exited.IsZero() && h.Exited.Before(d.Ended); {
	case attempts >= loopAttempts && took < time.Duration(attempts-1)*loopEvery:
		return loops, fmt.Sprintf("tries again in a tight loop: %d %s in %s, %d ms apart at the shortest", attempts, what, took.Round(time.Second/10), h.ShortestMS)
	case gone:
		return ended, fmt.Sprintf("its process ended %s after the pull", h.Exited.Sub(d.Began).Round(time.Second/10))
	case attempts == 0:
		return silent, "asked for nothing, and so has not shown what it does; repeat it with a longer --for"
	case attempts == 1:
		return stopped, "was refused once, and asked no more"
	}
	return pauses, fmt.Sprintf("pauses between attempts: %d %s in %s", attempts, what, took.Round(time.Second/10))
}

// upstream says what became of a value that was handed out.
func upstream(d view.Drill, h view.DrillHolder) string {
	const has = "it was given the value itself, and only its vendor sees whether it goes on with that"
	switch {
	case h.Revocation == "expiry-only":
		return has + ": it works until it expires"
	case h.Revocation == "none":
		return has + ": it works until it is replaced there"
	case d.Unconfirmed != "":
		return has + ": its end is not confirmed"
	}
	return has + ", which confirmed its end"
}

// restarted reports whether what has ended was followed by another that is served.
func restarted(d view.Drill, h view.DrillHolder) bool {
	for _, other := range d.Holders {
		if !other.Held && other.SPIFFEID == h.SPIFFEID && !other.Recovered.IsZero() {
			return true
		}
	}
	return false
}

// settled reports whether everybody who is to be served again was.
func settled(d view.Drill) bool {
	for _, h := range d.Holders {
		if h.Exited.IsZero() && h.Recovered.IsZero() && h.Asks+h.Calls > 0 {
			return false
		}
	}
	return true
}

func (v Verdict) who() string {
	who := fmt.Sprintf("%s  pid %d", v.SPIFFEID, v.PID)
	if v.Unit != "" {
		who += ", " + v.Unit
	}
	if !v.Held {
		who += " (had no lease at the pull)"
	}
	return who
}

func headline(d view.Drill, verdicts []Verdict) string {
	bad, unseen := 0, 0
	for _, v := range verdicts {
		switch {
		case v.Verdict == silent:
			unseen++
		case !v.OK:
			bad++
		}
	}
	text := fmt.Sprintf("%s was withheld for %s; %s ended", d.Credential, d.Ended.Sub(d.Began).Round(time.Second/10), cli.Count(d.Leases, "lease", "leases"))
	all := cli.Count(len(verdicts), "process", "processes")
	switch {
	case len(verdicts) == 0:
		return text + "; nobody used it"
	case bad+unseen == 0:
		return text + "; everybody coped"
	case unseen == 0:
		return fmt.Sprintf("%s; %d of %s did not cope", text, bad, all)
	}
	return fmt.Sprintf("%s; of %s, %d did not cope and %d did not ask", text, all, bad, unseen)
}
