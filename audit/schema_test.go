package audit

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

func compiledSchema(t testing.TB) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("record.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("record.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func checkSchema(t testing.TB, s *jsonschema.Schema, raw []byte) error {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return s.Validate(v)
}

func TestSchemaAcceptsWhatIsWritten(t *testing.T) {
	t.Parallel()
	s := compiledSchema(t)
	for e := range events {
		l := fullLeaf()
		l.Event = e
		if !events[e] {
			l.Log = nil
		}
		if err := checkSchema(t, s, mustEncode(t, l)); err != nil {
			t.Errorf("%s: %v", e, err)
		}
	}
	for _, text := range hostile {
		l := fullLeaf()
		l.Reason, l.Workload.Path, l.Workload.Selectors = text, text, []string{text, text}
		if err := checkSchema(t, s, mustEncode(t, l)); err != nil {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

func TestSchemaNamesEveryFieldAndEvent(t *testing.T) {
	t.Parallel()
	type object struct {
		Properties map[string]json.RawMessage
		Enum       []Event
	}
	var top object
	if err := json.Unmarshal(Schema, &top); err != nil {
		t.Fatal(err)
	}
	l := fullLeaf()
	l.Log.Repeated = true
	var leaf map[string]json.RawMessage
	if err := json.Unmarshal(mustEncode(t, l), &leaf); err != nil {
		t.Fatal(err)
	}
	if got, want := slices.Sorted(maps.Keys(top.Properties)), slices.Sorted(maps.Keys(leaf)); !slices.Equal(got, want) {
		t.Errorf("schema has %v, a leaf with everything %v", got, want)
	}
	for name, raw := range leaf {
		var inner map[string]json.RawMessage
		if json.Unmarshal(raw, &inner) != nil {
			continue
		}
		var o object
		if err := json.Unmarshal(top.Properties[name], &o); err != nil {
			t.Fatal(err)
		}
		if got, want := slices.Sorted(maps.Keys(o.Properties)), slices.Sorted(maps.Keys(inner)); !slices.Equal(got, want) {
			t.Errorf("schema's %s has %v, a leaf with everything %v", name, got, want)
		}
	}
	var event object
	if err := json.Unmarshal(top.Properties["event"], &event); err != nil {
		t.Fatal(err)
	}
	if want := slices.Sorted(maps.Keys(events)); !slices.Equal(event.Enum, want) {
		t.Errorf("schema has events %v, want %v", event.Enum, want)
	}
}

func TestSchemaRefusesOtherForms(t *testing.T) {
	t.Parallel()
	s := compiledSchema(t)
	raw := string(mustEncode(t, fullLeaf()))
	for _, change := range [][2]string{
		{`"v":1`, `"v":2`}, {`"seq":99,`, ``}, {`"outcome":"success"`, `"outcome":"maybe"`}, {`"uid":1000`, `"uid":-1`},
		{`"v":1`, `"secret":"x","v":1`}, {`"uid":1000,`, ``}, {`"event":"log.segment"`, `"event":"x"`},
	} {
		changed := strings.Replace(raw, change[0], change[1], 1)
		if changed == raw {
			t.Fatalf("%s is not in %s", change[0], raw)
		}
		if err := checkSchema(t, s, []byte(changed)); err == nil {
			t.Errorf("accepted %s for %s", change[1], change[0])
		}
	}
}
