package config

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type listed struct {
	Items []item `yaml:"items"`
}

type item struct {
	Count int     `yaml:"count" default:"3" min:"1" max:"9"`
	First Section `yaml:"first"`
	Other Section `yaml:"other"`
}

type inner struct {
	Word string `yaml:"word" required:"true" like:"abc"`
}

func TestSectionIsDecodedByWhoKnowsItsKeys(t *testing.T) {
	t.Parallel()
	var doc listed
	if err := Decode("f.yaml", []byte("items:\n- first: {word: a}\n- count: 9\n  first:\n    wort: a\n"), &doc); err != nil {
		t.Fatal(err)
	}
	var in inner
	if err := doc.Items[0].First.Decode(&in); err != nil || in.Word != "a" || doc.Items[0].Count != 3 {
		t.Errorf("decoded %+v, %+v, %v", doc.Items[0], in, err)
	}
	if !doc.Items[0].First.Given() || doc.Items[0].Other.Given() {
		t.Error("Given does not tell a section that is there from one that is not")
	}
	if got, want := doc.Items[1].First.Pos, (Pos{"f.yaml", 5, 5}); got != want || doc.Items[1].Count != 9 {
		t.Errorf("second item's section stands at %v, want %v; count %d", got, want, doc.Items[1].Count)
	}
	want := "f.yaml:5: unknown key \"wort\"; the nearest known is word\nf.yaml:5: first.word is missing; add it, like abc"
	if diff := cmp.Diff(want, fmt.Sprint(doc.Items[1].First.Decode(&in))); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if err := (Section{}).Decode(&in); err == nil {
		t.Error("a section that is not there lacks no required key")
	}
}

type open struct {
	Items []struct {
		Count int `yaml:"count"`
		Rest  Sections
	} `yaml:"items"`
}

func TestSectionsAreThoseWhoseNamesAreGiven(t *testing.T) {
	t.Parallel()
	data := []byte("items:\n- one: {word: a}\n  count: 1\n- {}\n- three: {}\n  two: {word: b}\n- ones: {}\n- two: x\n")
	var doc open
	err := DecodeWith("f.yaml", data, &doc, []string{"one", "two"})
	want := "f.yaml:5: unknown key \"three\"; the nearest known is one\nf.yaml:7: unknown key \"ones\"; the nearest known is one\nf.yaml:8: two must be keys with values, and is \"x\""
	if diff := cmp.Diff(want, fmt.Sprint(err)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	var in inner
	if err := doc.Items[0].Rest.Get("one").Decode(&in); err != nil || in.Word != "a" || doc.Items[0].Count != 1 {
		t.Errorf("decoded %+v, %+v, %v", doc.Items[0], in, err)
	}
	if doc.Items[0].Rest.Get("two").Given() || len(doc.Items[1].Rest) != 0 {
		t.Error("a section is given that is not there")
	}
	if rest := doc.Items[2].Rest; len(rest) != 1 || rest[0].Name() != "two" || rest[0].Pos.Line != 6 {
		t.Errorf("sections %+v, want the one that is known", rest)
	}
	if err := Decode("f.yaml", []byte("items: [{one: {}}]"), new(open)); err == nil {
		t.Error("a section is known without its name")
	}
}

func TestNumbersAndSectionsOfTheWrongForm(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, data, want string }{
		{"a number with letters", "items: [{count: x}]", "f.yaml:1: count must be a whole number, and is x"},
		{"a fraction", "items: [{count: 1.5}]", "f.yaml:1: count must be a whole number, and is 1.5"},
		{"a hexadecimal number", "items: [{count: 0x5}]", "f.yaml:1: count 0x5 is not a whole number; write it like 10"},
		{"an octal number", "items: [{count: 05}]", "f.yaml:1: count 05 is not a whole number; write it like 10"},
		{"a number above its range", "items: [{count: 10}]", "f.yaml:1: count 10 is out of range; use 1 to 9"},
		{"a number below its range", "items: [{count: 0}]", "f.yaml:1: count 0 is out of range; use 1 to 9"},
		{"a number beyond every range", "items: [{count: 99999999999999999999}]", "f.yaml:1: count must be a whole number, and is 99999999999999999999"},
		{"a quoted number", "items: [{count: \"5\"}]", "f.yaml:1: count must be a whole number, and is 5"},
		{"a section that is a word", "items: [{first: x}]", `f.yaml:1: first must be keys with values, and is "x"`},
		{"a section without a value", "items: [{first: }]", "f.yaml:1: first must be keys with values, and is empty"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, fmt.Sprint(Decode("f.yaml", []byte(tt.data), new(listed)))); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
