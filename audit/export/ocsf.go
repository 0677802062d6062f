package export

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strconv"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/analyst"
)

// OCSFVersion is the version of the Open Cybersecurity Schema Framework that
// events are written in.
const OCSFVersion = "1.2.0"

// The classes used, and their activities (OCSF 1.2.0).
const (
	classDetection      = 2004
	classAuthentication = 3002
	classAPI            = 6003

	activityOther = 99

	findingCreate = 1

	authLogon         = 1
	authTicket        = 3
	authServiceTicket = 4

	apiCreate = 1
	apiRead   = 2
	apiUpdate = 3
	apiDelete = 4
)

// ocsfEvent has what the three classes need, and what they recommend that a
// record can tell.
type ocsfEvent struct {
	ActivityID   int            `json:"activity_id"`
	ActivityName string         `json:"activity_name,omitempty"`
	CategoryUID  int            `json:"category_uid"`
	ClassUID     int            `json:"class_uid"`
	TypeUID      int            `json:"type_uid"`
	SeverityID   int            `json:"severity_id"`
	StatusID     int            `json:"status_id"`
	StatusDetail string         `json:"status_detail,omitempty"`
	Time         int64          `json:"time"` // ms since 1970
	Duration     int64          `json:"duration,omitempty"`
	Count        uint64         `json:"count,omitempty"`
	StartTime    int64          `json:"start_time,omitempty"`
	EndTime      int64          `json:"end_time,omitempty"`
	Message      string         `json:"message"`
	Metadata     ocsfMetadata   `json:"metadata"`
	User         *ocsfUser      `json:"user,omitempty"`
	Service      *ocsfEntity    `json:"service,omitempty"`
	Actor        *ocsfActor     `json:"actor,omitempty"`
	API          *ocsfAPI       `json:"api,omitempty"`
	SrcEndpoint  *ocsfEndpoint  `json:"src_endpoint,omitempty"`
	Resources    []ocsfResource `json:"resources,omitempty"`
	FindingInfo  *ocsfFinding   `json:"finding_info,omitempty"`
	Unmapped     ocsfUnmapped   `json:"unmapped"`
}

type ocsfMetadata struct {
	Version        string      `json:"version"`
	UID            string      `json:"uid"`
	Sequence       uint64      `json:"sequence"`
	EventCode      audit.Event `json:"event_code"`
	LogName        string      `json:"log_name"`
	CorrelationUID string      `json:"correlation_uid,omitempty"`
	Product        ocsfProduct `json:"product"`
}

type ocsfProduct struct {
	Name       string `json:"name"`
	VendorName string `json:"vendor_name"`
}

type ocsfUser struct {
	Name string `json:"name,omitempty"`
	UID  string `json:"uid,omitempty"`
}

type ocsfEntity struct {
	Name string `json:"name"`
}

type ocsfActor struct {
	AppName string       `json:"app_name,omitempty"`
	User    *ocsfUser    `json:"user,omitempty"`
	Process *ocsfProcess `json:"process,omitempty"`
}

type ocsfProcess struct {
	PID  int       `json:"pid"`
	File *ocsfFile `json:"file,omitempty"`
	User *ocsfUser `json:"user,omitempty"`
}

type ocsfFile struct {
	Name   string     `json:"name"`
	Path   string     `json:"path"`
	TypeID int        `json:"type_id"`
	Hashes []ocsfHash `json:"hashes,omitempty"`
}

type ocsfHash struct {
	AlgorithmID int    `json:"algorithm_id"`
	Value       string `json:"value"`
}

type ocsfAPI struct {
	Operation string      `json:"operation"`
	Service   *ocsfEntity `json:"service,omitempty"`
}

type ocsfEndpoint struct {
	Name     string `json:"name"`
	Hostname string `json:"hostname,omitempty"`
}

type ocsfResource struct {
	Name  string    `json:"name,omitempty"`
	Type  string    `json:"type,omitempty"`
	UID   string    `json:"uid,omitempty"`
	Owner *ocsfUser `json:"owner,omitempty"`
}

type ocsfFinding struct {
	UID   string `json:"uid"`
	Title string `json:"title"`
}

// ocsfUnmapped leads back to the proof, and brings the record as it stands in
// the log.
type ocsfUnmapped struct {
	LogID    string          `json:"log_id"`
	Index    uint64          `json:"record_index"`
	LeafHash string          `json:"leaf_hash"`
	Record   json.RawMessage `json:"record"`
}

// OCSF returns the event as one line of OCSF JSON: an Authentication (3002) for
// what is issued to, or refused to, a workload; a Detection Finding (2004) for
// what somebody should look at; an API Activity (6003) for all else.
func OCSF(e *Event) ([]byte, error) {
	l := &e.Leaf
	class, activity := ocsfClass(l)
	uid := fmt.Sprintf("%s/%d", e.LogID, e.Index)
	o := ocsfEvent{
		ActivityID: activity, CategoryUID: class / 1000, ClassUID: class, TypeUID: class*100 + activity,
		SeverityID: ocsfSeverity(l), StatusID: ocsfStatus(l, class), StatusDetail: l.Reason,
		Time: l.Time.UnixMilli(), Duration: l.Duration.Milliseconds(), Message: message(l),
		Metadata: ocsfMetadata{
			Version: OCSFVersion, UID: uid, Sequence: e.Index, EventCode: l.Event, LogName: "attestation",
			CorrelationUID: l.RequestID, Product: ocsfProduct{Name: "vouchd", VendorName: "vouchd"},
		},
		Actor:    actor(l),
		Unmapped: ocsfUnmapped{LogID: e.LogID, Index: e.Index, LeafHash: leafHash(e), Record: e.Raw},
	}
	if activity == activityOther {
		o.ActivityName = activityName(l.Event)
	}
	o.use(l.Use)
	switch class {
	case classAuthentication:
		o.User, o.Service = user(l), &ocsfEntity{"vouchd"}
	case classAPI:
		o.API = &ocsfAPI{Operation: string(l.Event), Service: &ocsfEntity{"vouchd"}}
		o.SrcEndpoint = &ocsfEndpoint{Name: "localhost", Hostname: e.Host}
		o.Resources = resources(l)
	case classDetection:
		o.FindingInfo = &ocsfFinding{UID: uid, Title: message(l)}
	}
	return json.Marshal(o)
}

func ocsfClass(l *audit.Leaf) (class, activity int) {
	switch l.Event {
	case audit.EventX509SVID:
		return classAuthentication, authTicket
	case audit.EventJWTSVID, audit.EventWITSVID:
		return classAuthentication, authServiceTicket
	case audit.EventWorkload, audit.EventSPIREAttest:
		return classAuthentication, authLogon
	case audit.EventJWTValidated:
		return classAuthentication, activityOther
	case audit.EventRecover, audit.EventPrune, audit.EventRestart, audit.EventStreamEnd, audit.EventWitness:
		return classDetection, findingCreate
	case audit.EventAnchor, audit.EventNode:
		if l.Outcome != audit.Success {
			return classDetection, findingCreate
		}
		return classAPI, apiCreate
	case audit.EventBundle, audit.EventAdmin, audit.EventSecretUndo:
		return classAPI, apiRead
	case audit.EventReload, audit.EventFederation, audit.EventSPIREAuthority, audit.EventSPIREBundle, audit.EventSPIREEntries, audit.EventLeaseRenew, audit.EventSecretRotate:
		return classAPI, apiUpdate
	case audit.EventLeaseIntent, audit.EventLeaseGrant, audit.EventIssuingCA, audit.EventJWTKey, audit.EventUpstream, audit.EventSPIRESign, audit.EventSecretSeal:
		return classAPI, apiCreate
	case audit.EventLeaseRevokeIntent, audit.EventLeaseRevoke, audit.EventLeaseEnd, audit.EventSecretRemove:
		return classAPI, apiDelete
	}
	return classAPI, activityOther
}

// activityName names what the class's own activities do not have.
func activityName(e audit.Event) string {
	switch e {
	case audit.EventUse:
		return "Use"
	case audit.EventJWTValidated:
		return "Validate"
	}
	return string(e)
}

// ocsfSeverity goes by the outcome: informational (1) for what went as it was to,
// an expiry among it, low (2) for what was refused, medium (3) for what failed.
// What somebody should look at although it went well stands out, and so does what
// puts the machine or the log in doubt: high (4).
func ocsfSeverity(l *audit.Leaf) int {
	switch {
	case l.Event == audit.EventWitness, l.Event == audit.EventNode && l.Outcome != audit.Success:
		return 4
	case l.Event == audit.EventRecover, l.Outcome == audit.Failed:
		return 3
	case l.Event == audit.EventStreamEnd, l.Outcome == audit.Denied:
		return 2
	}
	return 1
}

// ocsfStatus is success (1) or failure (2). Of a finding it is where its handling
// stands, and a record's is always new (1).
func ocsfStatus(l *audit.Leaf, class int) int {
	if class == classDetection || l.Outcome == audit.Success || l.Outcome == audit.Expired {
		return 1
	}
	return 2
}

// use adds how a lease was used, as far as somebody saw it.
func (o *ocsfEvent) use(u *audit.Use) {
	switch {
	case u == nil:
	case u.Source == "unknown":
		o.StatusDetail = cmp.Or(o.StatusDetail, "use unknown")
	default:
		o.Count = u.Count
		if !u.First.IsZero() {
			o.StartTime, o.EndTime = u.First.UnixMilli(), u.Last.UnixMilli()
		}
	}
}

// resources is the credential that a record is about, by its name in the
// configuration and at its source, and whose lease it is.
func resources(l *audit.Leaf) []ocsfResource {
	c := l.Credential
	if c == nil || c.Name == "" && c.Handle == "" {
		return nil
	}
	r := ocsfResource{Name: c.Name, Type: c.Kind, UID: cmp.Or(c.Handle, c.Lease)}
	if l.SPIFFEID != "" {
		r.Owner = &ocsfUser{Name: l.SPIFFEID}
	}
	return []ocsfResource{r}
}

func user(l *audit.Leaf) *ocsfUser {
	u := &ocsfUser{Name: l.SPIFFEID}
	if l.Workload != nil {
		u.UID = strconv.FormatUint(uint64(l.Workload.UID), 10)
	}
	if u.Name == "" && u.UID == "" {
		u.Name = "unknown"
	}
	return u
}

func actor(l *audit.Leaf) *ocsfActor {
	w := l.Workload
	if w == nil {
		return &ocsfActor{AppName: "vouchd"} // by itself
	}
	p := &ocsfProcess{PID: w.PID, User: &ocsfUser{UID: strconv.FormatUint(uint64(w.UID), 10)}}
	if w.Path != "" {
		p.File = &ocsfFile{Name: path.Base(w.Path), Path: w.Path, TypeID: 1}
		if w.SHA256 != "" {
			p.File.Hashes = []ocsfHash{{AlgorithmID: 3, Value: w.SHA256}} // SHA-256
		}
	}
	a := &ocsfActor{Process: p}
	if l.SPIFFEID != "" {
		a.User = user(l)
	}
	return a
}

// message is the record in a few words. Its texts are escaped already.
func message(l *audit.Leaf) string {
	s := string(l.Event) + ": " + analyst.Word(l)
	if l.SPIFFEID != "" {
		s += " for " + l.SPIFFEID
	}
	if reason := analyst.Reason(l); reason != "" {
		s += " (" + reason + ")"
	}
	return s
}

func leafHash(e *Event) string {
	h := e.LeafHash()
	return fmt.Sprintf("%x", h[:])
}

// A Lines sink writes OCSF JSON lines. A writer that can time out, such as a
// file that is a pipe or a socket, is held to the batch's time.
type Lines struct{ W io.Writer }

// Send implements [Sink].
func (s Lines) Send(ctx context.Context, events []Event) error {
	var b bytes.Buffer
	for i := range events {
		line, err := OCSF(&events[i])
		if err != nil {
			return fmt.Errorf("record %d: %w", events[i].Index, err)
		}
		b.Write(line)
		b.WriteByte('\n')
	}
	if d, ok := s.W.(interface{ SetWriteDeadline(time.Time) error }); ok {
		deadline, _ := ctx.Deadline()
		d.SetWriteDeadline(deadline) // regular files can't, and never block for long
	}
	_, err := s.W.Write(b.Bytes())
	return err
}
