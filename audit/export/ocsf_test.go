package export

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/reader"
)

// A schema is what OCSF publishes of the classes and objects that events use.
type schema struct {
	Types   map[string]string
	Classes map[string]schemaClass
	Objects map[string]schemaClass
}

type schemaClass struct {
	Category    int `json:"category_uid"`
	Constraints struct {
		AtLeastOne []string `json:"at_least_one"`
	}
	Attributes map[string]schemaAttribute
}

type schemaAttribute struct {
	Type            string
	Array, Required bool
	Enum            []float64
}

func readSchema(t *testing.T) (s schema) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "ocsf-1.2.0.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// check returns what is wrong with an event by the schema.
func (s schema) check(event map[string]any) (wrong []string) {
	class, activity := event["class_uid"].(float64), event["activity_id"].(float64)
	rules, ok := s.Classes[strconv.Itoa(int(class))]
	if !ok {
		return []string{fmt.Sprintf("class %v is none", class)}
	}
	if event["category_uid"] != float64(rules.Category) || event["type_uid"] != class*100+activity {
		wrong = append(wrong, fmt.Sprintf("category %v and type %v of class %v", event["category_uid"], event["type_uid"], class))
	}
	if activity == 99 && event["activity_name"] == nil {
		wrong = append(wrong, "activity 99 without a name")
	}
	return append(wrong, s.object("event", rules, event)...)
}

func (s schema) object(at string, rules schemaClass, o map[string]any) (wrong []string) {
	for name, a := range rules.Attributes {
		if _, ok := o[name]; a.Required && !ok {
			wrong = append(wrong, at+" has no "+name)
		}
	}
	if one := rules.Constraints.AtLeastOne; len(one) > 0 && !slices.ContainsFunc(one, func(name string) bool { return o[name] != nil }) {
		wrong = append(wrong, fmt.Sprintf("%s has none of %v", at, one))
	}
	for name, v := range o {
		a, ok := rules.Attributes[name]
		if !ok {
			wrong = append(wrong, at+" has "+name+", which the schema does not know")
			continue
		}
		list, isList := v.([]any)
		if isList != a.Array {
			wrong = append(wrong, fmt.Sprintf("%s.%s: a list, %t", at, name, isList))
			continue
		}
		if !isList {
			list = []any{v}
		}
		for _, v := range list {
			wrong = append(wrong, s.value(at+"."+name, a, v)...)
		}
	}
	return wrong
}

func (s schema) value(at string, a schemaAttribute, v any) []string {
	if a.Type == "object" { // any
		return nil
	}
	if rules, ok := s.Objects[a.Type]; ok {
		o, ok := v.(map[string]any)
		if !ok {
			return []string{at + " is no object"}
		}
		return s.object(at, rules, o)
	}
	n, isNumber := v.(float64)
	_, isText := v.(string)
	switch s.Types[a.Type] {
	case "integer_t", "long_t":
		if !isNumber || n != math.Trunc(n) || len(a.Enum) > 0 && !slices.Contains(a.Enum, n) {
			return []string{fmt.Sprintf("%s is %v", at, v)}
		}
	case "string_t":
		if !isText || v == "" {
			return []string{fmt.Sprintf("%s is %v", at, v)}
		}
	default:
		return []string{at + " has type " + a.Type + ", which this test does not know"}
	}
	return nil
}

// ocsf returns a record as it is exported.
func ocsf(t *testing.T, r audit.Record) map[string]any {
	t.Helper()
	leaf := audit.Leaf{Record: r, Time: time.Now()}
	line, err := OCSF(&Event{LogID: "id", Host: "h", Entry: reader.Entry{Index: 4, Leaf: leaf, Raw: []byte("{}")}})
	if err != nil {
		t.Fatal(err)
	}
	var o map[string]any
	if err := json.Unmarshal(line, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

// used is a record of a lease's use.
func used(n uint64) audit.Record {
	r := record(audit.EventUse, audit.Success)
	r.Reason, r.Workload = "", nil
	r.Credential = &audit.Credential{Lease: "ab", Name: "warehouse", Kind: "postgres", Upstream: "db.example.org", Handle: "role_1"}
	r.Use = &audit.Use{First: time.UnixMilli(1000), Last: time.UnixMilli(5000), Count: n, WithinTTL: true, Source: "upstream"}
	return r
}

func TestOCSFIsValidByThePublishedSchema(t *testing.T) {
	t.Parallel()
	s := readSchema(t)
	classes := map[string]bool{}
	for _, event := range allEvents(t) {
		for _, outcome := range []audit.Outcome{audit.Success, audit.Denied, audit.Failed, audit.Expired} {
			leased := used(3)
			leased.Event, leased.Outcome = event, outcome
			for _, r := range []audit.Record{{Event: event, Outcome: outcome}, record(event, outcome), leased} {
				o := ocsf(t, r)
				for _, w := range s.check(o) {
					t.Errorf("%s %s: %s", event, outcome, w)
				}
				classes[fmt.Sprint(o["class_uid"])] = true
			}
		}
	}
	if len(classes) != len(s.Classes) {
		t.Errorf("classes %v are used", slices.Sorted(maps.Keys(classes)))
	}
}

func TestOCSFCheckerFindsWhatTheSchemaForbids(t *testing.T) {
	t.Parallel()
	s := readSchema(t)
	for name, spoil := range map[string]func(o map[string]any){
		"a missing attribute":  func(o map[string]any) { delete(o, "metadata") },
		"an unknown attribute": func(o map[string]any) { o["colour"] = "red" },
		"a wrong enumerator":   func(o map[string]any) { o["severity_id"] = 7.0 },
		"a wrong type":         func(o map[string]any) { o["message"] = 1.0 },
		"an object in ruins":   func(o map[string]any) { o["user"] = map[string]any{} },
		"another type's UID":   func(o map[string]any) { o["type_uid"] = 1.0 },
	} {
		o := ocsf(t, record(audit.EventX509SVID, audit.Success))
		spoil(o)
		if len(s.check(o)) == 0 {
			t.Errorf("%s passes", name)
		}
	}
}

func TestOCSFSeverityAndStatusGoByTheOutcome(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		event            audit.Event
		outcome          audit.Outcome
		severity, status float64
	}{
		{audit.EventLeaseEnd, audit.Expired, 1, 1}, // ended when it was to
		{audit.EventLeaseRevoke, audit.Success, 1, 1},
		{audit.EventLeaseRevoke, audit.Failed, 3, 2}, // it may still work
		{audit.EventLeaseIntent, audit.Denied, 2, 2},
		{audit.EventLeaseGrant, audit.Success, 1, 1},
		{audit.EventUse, audit.Success, 1, 1},
		{audit.EventX509SVID, audit.Denied, 2, 2},
		{audit.EventX509SVID, audit.Failed, 3, 2},
		// The status of a finding is where its handling stands: new.
		{audit.EventPrune, audit.Success, 1, 1},
		{audit.EventStreamEnd, audit.Success, 2, 1},
		{audit.EventRecover, audit.Success, 3, 1},
		{audit.EventAnchor, audit.Failed, 3, 1},
		{audit.EventNode, audit.Denied, 4, 1},
		{audit.EventWitness, audit.Failed, 4, 1},
	} {
		o := ocsf(t, audit.Record{Event: tt.event, Outcome: tt.outcome})
		if o["severity_id"] != tt.severity || o["status_id"] != tt.status {
			t.Errorf("%s %s: severity %v and status %v, want %v and %v", tt.event, tt.outcome, o["severity_id"], o["status_id"], tt.severity, tt.status)
		}
	}
}

func TestOCSFTellsOfUses(t *testing.T) {
	t.Parallel()
	o := ocsf(t, used(7))
	resource := o["resources"].([]any)[0].(map[string]any)
	if o["count"] != 7.0 || o["start_time"] != 1000.0 || o["end_time"] != 5000.0 || o["activity_name"] != "Use" ||
		resource["name"] != "warehouse" || resource["uid"] != "role_1" || resource["owner"].(map[string]any)["name"] != "spiffe://example.org/a" {
		t.Errorf("%v", o)
	}
	unseen := used(0)
	unseen.Use = &audit.Use{Source: "unknown"}
	if o = ocsf(t, unseen); o["count"] != nil || o["start_time"] != nil || o["status_detail"] != "use unknown" {
		t.Errorf("a use that nobody could see: %v", o)
	}
}

// allEvents lists the events of the record's schema.
func allEvents(t *testing.T) []audit.Event {
	var s struct {
		Properties struct{ Event struct{ Enum []audit.Event } }
	}
	if err := json.Unmarshal(audit.Schema, &s); err != nil || len(s.Properties.Event.Enum) == 0 {
		t.Fatalf("no events in the schema: %v", err)
	}
	return s.Properties.Event.Enum
}
