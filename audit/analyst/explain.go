package analyst

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/reader"
)

// An Explanation is the whole chain of one record: which machine, in which boot
// state, gave which process what, and what became of it.
type Explanation struct {
	Index uint64    `json:"record"`
	Time  time.Time `json:"time"`
	Steps []Step    `json:"steps"`
	Left  int       `json:"steps_left_out,omitempty"`
}

// A Step is one record of the chain and what it contributes.
type Step struct {
	Name   string          `json:"name"` // machine, boot, authority, process, decision, use, end, anchor
	Index  uint64          `json:"record"`
	Says   string          `json:"says"`
	Record json.RawMessage `json:"content"`
}

// maxSteps bounds an explanation: a lease may have been used a million times.
const maxSteps = 200

// Explain puts the chain of one record together, with times in a zone. It reads the
// whole log, without checking proofs: that is for [reader.Verify].
func Explain(ctx context.Context, fsys fs.FS, index uint64, zone *time.Location) (*Explanation, error) {
	var target *Entry
	for e, err := range reader.Records(ctx, fsys, index) {
		if err != nil {
			return nil, err
		}
		target = &e
		break
	}
	if target == nil || target.Index != index {
		return nil, fmt.Errorf("explaining record %d: it is not in this copy of the log", index)
	}
	x := explainer{target: target, zone: zone, e: &Explanation{Index: index, Time: target.Leaf.Time}}
	for e, err := range reader.Records(ctx, fsys, 0) {
		if err != nil {
			return nil, err
		}
		if x.take(&e) {
			break
		}
	}
	return x.e, nil
}

type explainer struct {
	target *Entry
	zone   *time.Location
	e      *Explanation

	machine, boot *Entry            // last before the target
	agent         *Entry            // the last attestation to a SPIRE server before it
	signing       *Entry            // of the SVID, by that server
	keys          map[string]*Entry // before the target, by key ID
	anchored      bool
}

// take looks at the next record and tells whether the chain is complete.
func (x *explainer) take(e *Entry) (done bool) {
	l, t := &e.Leaf, &x.target.Leaf
	if e.Index < x.target.Index {
		x.before(e)
	}
	switch {
	case e.Index == x.target.Index:
		x.here(e)
	case x.related(l) && e.Index < x.target.Index:
		x.step("before", e, "the same request: "+x.saying(l))
	case x.related(l):
		x.step("after", e, x.saying(l))
	case l.Event == audit.EventAnchor && l.Outcome == audit.Success && l.Log != nil && l.Log.Size > x.target.Index && !x.anchored:
		x.anchored = true
		x.step("anchor", e, "the TPM binds the first "+Count(l.Log.Size, "record")+", this one among them")
	}
	// Nothing follows a decision that gave nothing which lives on.
	return x.anchored && e.Index > x.target.Index && t.Credential == nil && t.RequestID == ""
}

func (x *explainer) before(e *Entry) {
	l := &e.Leaf
	if x.keys == nil {
		x.keys = map[string]*Entry{}
	}
	if l.Node != nil && len(l.Node.Statement) > 0 {
		x.machine = e
	}
	if l.Node != nil && l.Node.PCRSHA256 != "" {
		x.boot = e
	}
	if l.Event == audit.EventSPIREAttest && l.Outcome == audit.Success && l.SPIRE != nil {
		x.agent = e
	}
	if s := x.target.Leaf.SVID; s != nil && s.Signing != "" && l.Event == audit.EventSPIRESign && l.SPIRE != nil && l.SPIRE.Signing == s.Signing {
		x.signing = e
	}
	if l.Key != nil && l.Outcome == audit.Success && (x.keys[l.Key.KeyID] == nil || len(x.keys) < maxKeys) {
		x.keys[strings.ToLower(l.Key.KeyID)] = e
	}
}

// here puts down what the target rests on, and itself.
func (x *explainer) here(e *Entry) {
	var first []Step
	add := func(name string, e *Entry, says string) {
		if e != nil {
			first = append(first, Step{name, e.Index, says, e.Raw})
		}
	}
	if m := x.machine; m != nil {
		add("machine", m, fmt.Sprintf("the machine with EK %s; its statement proves AK %s and the log's key", m.Leaf.Node.EKSHA256, m.Leaf.Node.AKName))
	}
	if b := x.boot; b != nil {
		add("boot", b, fmt.Sprintf("booted into PCR state %s, reset count %d", b.Leaf.Node.PCRSHA256, b.Leaf.Node.Resets))
	}
	if s := e.Leaf.SVID; s != nil {
		if k := x.keys[strings.ToLower(s.KeyID)]; k != nil {
			add("authority", k, fmt.Sprintf("key %s, which signed it, in force until %s", k.Leaf.Key.KeyID, stamp(k.Leaf.Key.NotAfter, x.zone)))
		}
	}
	if s := x.signing; s != nil {
		if a := x.agent; a != nil {
			add("agent", a, fmt.Sprintf("agent %s of SPIRE server %s, as which this host is attested by %s", a.Leaf.SPIRE.Agent, a.Leaf.SPIRE.Server, a.Leaf.SPIRE.Attestor))
		}
		add("signing", s, fmt.Sprintf("the SPIRE server signed it for entry %s, revision %d", s.Leaf.SPIRE.Entry, s.Leaf.SPIRE.Revision))
	}
	if w := e.Leaf.Workload; w != nil {
		add("process", e, processSaying(w))
	}
	x.e.Steps = append(first, x.e.Steps...)
	x.step("decision", e, x.saying(&e.Leaf))
}

// related tells whether the record is about the same request or lease.
func (x *explainer) related(l *audit.Leaf) bool {
	t := &x.target.Leaf
	return t.RequestID != "" && l.RequestID == t.RequestID ||
		t.Credential != nil && l.Credential != nil && t.Credential.Lease != "" && l.Credential.Lease == t.Credential.Lease
}

func (x *explainer) step(name string, e *Entry, says string) {
	if len(x.e.Steps) >= maxSteps {
		x.e.Left++
		return
	}
	x.e.Steps = append(x.e.Steps, Step{name, e.Index, says, e.Raw})
}

func processSaying(w *audit.Workload) string {
	s := fmt.Sprintf("process %d of user %d ran %s (sha256 %s)", w.PID, w.UID, w.Path, w.SHA256)
	if w.Unit != "" {
		s += " as " + w.Unit
	}
	if w.Entry != "" {
		s += "; it matched " + w.Entry
	} else {
		s += "; it matched no entry"
	}
	return s
}

// saying puts a decision into a sentence.
func (x *explainer) saying(l *audit.Leaf) string {
	s := stamp(l.Time, x.zone) + "  " + string(l.Event) + ": " + Word(l)
	if l.SPIFFEID != "" {
		s += " for " + l.SPIFFEID
	}
	if v := l.SVID; v != nil {
		s += fmt.Sprintf(", %s %s", v.Kind, v.ID)
		if len(v.Audience) > 0 {
			s += " for audience " + strings.Join(v.Audience, ", ")
		}
		if len(v.DNSNames) > 0 {
			s += " with DNS names " + strings.Join(v.DNSNames, ", ")
		}
		if v.CommonName != "" {
			s += " with common name " + v.CommonName
		}
		s += fmt.Sprintf(", valid %s to %s", stamp(v.NotBefore, x.zone), stamp(v.NotAfter, x.zone))
		if v.Offline {
			s += ", while the SPIRE server was away"
		}
	}
	if c := l.Credential; c != nil {
		s += ", credential " + c.Name
		if c.ScopeGranted != "" {
			s += " with scope " + c.ScopeGranted
		}
		if c.TTL > 0 {
			s += fmt.Sprintf(" for %v", c.TTL)
		}
	}
	if l.Use != nil {
		s += ", " + x.use(l.Use)
	}
	if l.Call != nil {
		s += ", " + Call(l)
	}
	if reason := Reason(l); reason != "" {
		s += " (" + reason + ")"
	}
	return s
}

// Call says which call a record is about and, if it is known, what came of it.
func Call(l *audit.Leaf) string {
	c := l.Call
	var b strings.Builder
	b.WriteString(strings.TrimSpace(c.Method + " " + c.Path))
	if c.Rule != "" {
		b.WriteString(" by rule " + c.Rule)
	}
	if c.Unenforced {
		b.WriteString(", which no rule allows, but the rules are only tried out")
	}
	if c.Count > 1 {
		fmt.Fprintf(&b, ", %d calls", c.Count)
	}
	if l.Event != audit.EventCallEnd {
		return b.String()
	}
	if c.Status > 0 {
		fmt.Fprintf(&b, ": status %d", c.Status)
	}
	fmt.Fprintf(&b, ", %s sent and %d received in %v", Count(c.Sent, "byte"), c.Received, l.Duration.Round(time.Millisecond))
	if c.Statements != "" {
		fmt.Fprintf(&b, ", statements %s", strings.ReplaceAll(c.Statements, ",", ", "))
	}
	if c.Rows > 0 {
		b.WriteString(", " + Count(c.Rows, "row"))
	}
	if c.Redacted > 0 {
		fmt.Fprintf(&b, ", the credential taken out %s", Times(c.Redacted))
	}
	if c.Shapes != "" {
		fmt.Fprintf(&b, ", what looks like another secret in it (%s)", strings.ReplaceAll(c.Shapes, ",", ", "))
	}
	if !c.WithinTTL {
		b.WriteString(", beyond the lease's end")
	}
	return b.String()
}

// use says how a lease was used, as far as somebody saw it.
func (x *explainer) use(u *audit.Use) string {
	switch {
	case u.Source == "unknown":
		return "use unknown: nobody could see it"
	case u.Count == 0:
		return "not used (seen by " + u.Source + ")"
	case u.First.IsZero():
		return fmt.Sprintf("used %s (seen by %s)", Times(u.Count), u.Source)
	}
	return fmt.Sprintf("used %s between %s and %s (seen by %s)", Times(u.Count), stamp(u.First, x.zone), stamp(u.Last, x.zone), u.Source)
}

// WriteText writes the explanation for people.
func (e *Explanation) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Record %d\n\n", e.Index)
	for _, s := range e.Steps {
		fmt.Fprintf(&b, "  %-10s %7d  %s\n", s.Name, s.Index, s.Says)
	}
	if e.Left > 0 {
		fmt.Fprintf(&b, "\n%d more records of the same lease are left out\n", e.Left)
	}
	if !slices.ContainsFunc(e.Steps, func(s Step) bool { return s.Name == "anchor" }) {
		b.WriteString("\nNo anchor covers this record yet.\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}
