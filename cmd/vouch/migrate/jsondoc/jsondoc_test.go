package jsondoc

import (
	"encoding/json"
	"testing"
)

func TestValuesAreReadWithTheirPlaces(t *testing.T) {
	t.Parallel()
	const text = "\xef\xbb\xbf{ // x\n \"a\\u0062\": [1, \"c\\n\", null,], /* \"d\" */ \"e\": {\"f\": true}\n}"
	n, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	list := n.Get("ab")
	if !list.Is('[') || len(list.Members) != 3 || list.Members[1].Value.Text != "c\n" || text[list.Start:list.End] != "[1, \"c\\n\", null,]" {
		t.Errorf("the list is %+v", list)
	}
	if f := n.Get("e", "f"); f == nil || text[f.Start:f.End] != "true" || n.Get("e", "g", "h") != nil {
		t.Errorf("the member is %+v", f)
	}
}

// What is read is a part of the text, and whatever is JSON with unique names is read.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"a": [1, "b", {}], "c": null}`))
	f.Add([]byte("{/**/\"a\": \"\\u0061\",}//"))
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := Parse(data)
		if err != nil {
			return
		}
		var check func(n *Node, from, to int)
		check = func(n *Node, from, to int) {
			if n.Start < from || n.End > to || n.Start >= n.End {
				t.Fatalf("bytes %d to %d, within %d to %d", n.Start, n.End, from, to)
			}
			if n.Kind == '"' {
				var s string
				if json.Unmarshal(data[n.Start:n.End], &s) != nil || s != n.Text {
					t.Fatalf("%q is read as %q", data[n.Start:n.End], n.Text)
				}
			}
			at := n.Start
			for _, m := range n.Members {
				if m.Start < at {
					t.Fatalf("a member at %d, before %d", m.Start, at)
				}
				check(m.Value, m.Start, n.End)
				at = m.Value.End
			}
		}
		check(n, 0, len(data))
	})
}
