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
	Did  string `json:"did"`
	Back string `json:"back"`
	OK   bool   `json:"ok"` // it coped
}

// What counts as a loop: so many attempts, at more than one a second.
const (
	loopAttempts = 5
	loopEvery    = time.Second
)

// judge says what each process did, and whether it coped: it stopped, or tried again with
// pauses, and was served again if it asked.
func judge(d view.Drill) (all []Verdict) {
	for _, h := range d.Holders {
		v := Verdict{DrillHolder: h, OK: true}
		attempts, took := h.Asks+h.Calls, h.Last.Sub(h.First)
		what := ""
		switch {
		case h.Asks == 0:
			what = "calls with the handle that it has"
		case h.Calls == 0:
			what = "asks"
		default:
			what = "asks and calls"
		}
		switch gone := !h.Exited.IsZero() && (d.Ended.IsZero() || h.Exited.Before(d.Ended)); {
		case attempts >= loopAttempts && took < time.Duration(attempts-1)*loopEvery:
			v.Did, v.OK = fmt.Sprintf("tries again in a tight loop: %d %s in %s, %d ms apart at the shortest", attempts, what, took.Round(time.Second/10), h.ShortestMS), false
		case gone:
			v.Did = fmt.Sprintf("its process ended %s after the pull", h.Exited.Sub(d.Began).Round(time.Second/10))
		case attempts == 0:
			v.Did = "asked for nothing; if it holds the value itself, only its vendor sees whether it goes on with it"
		case attempts == 1:
			v.Did = "was refused once, and asked no more"
		default:
			v.Did = fmt.Sprintf("pauses between attempts: %d %s in %s", attempts, what, took.Round(time.Second/10))
		}
		switch {
		case !h.Exited.IsZero():
			v.Back = "its process has ended"
		case !h.Recovered.IsZero():
			v.Back = fmt.Sprintf("was served again %s after the end", h.Recovered.Sub(d.Ended).Round(time.Second/10))
		case attempts > 0:
			v.Back, v.OK = "has not been served again", false
		default:
			v.Back = "has not asked again"
		}
		all = append(all, v)
	}
	return all
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
	bad := 0
	for _, v := range verdicts {
		if !v.OK {
			bad++
		}
	}
	text := fmt.Sprintf("%s was withheld for %s; %s ended", d.Credential, d.Ended.Sub(d.Began).Round(time.Second/10), cli.Count(d.Leases, "lease", "leases"))
	switch {
	case len(verdicts) == 0:
		return text + "; nobody used it"
	case bad == 0:
		return text + "; everybody coped"
	}
	return fmt.Sprintf("%s; %d of %s did not cope", text, bad, cli.Count(len(verdicts), "process", "processes"))
}
