package appraisal

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/config"
)

// docs/evidence.md describes every field of the evidence and every key of a
// policy.
func TestEveryFieldIsDescribed(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../docs/evidence.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for _, field := range fields(reflect.TypeFor[Evidence](), "") {
		if !strings.Contains(text, "`"+field+"`") {
			t.Errorf("field %s of the evidence is not described", field)
		}
	}
	for _, k := range config.Keys(Policy{}) {
		name := strings.ReplaceAll(k.Name, "[]", "")
		if i := strings.LastIndex(name, "."); i >= 0 && (strings.HasPrefix(name, "ima.allow.") || strings.HasPrefix(name, "ima.forbid.")) {
			name = name[i+1:]
		}
		if !strings.Contains(text, "`"+name+"`") {
			t.Errorf("key %s of a policy is not described", name)
		}
	}
}

// fields lists the fields down to what is described as one; what is signed is
// described once for all.
func fields(t reflect.Type, prefix string) []string {
	var all []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		under := f.Type
		if under.Kind() == reflect.Pointer {
			under = under.Elem()
		}
		switch {
		case f.Anonymous, name == "version" && prefix != "":
		case under.Kind() == reflect.Struct && strings.HasPrefix(under.PkgPath(), "github.com/") &&
			under != reflect.TypeFor[Signed]() && under != reflect.TypeFor[Creation]():
			all = append(all, fields(under, prefix+name+".")...)
		default:
			all = append(all, prefix+name)
		}
	}
	return all
}
