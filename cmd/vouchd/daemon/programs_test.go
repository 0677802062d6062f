package daemon

import (
	"reflect"
	"testing"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/programs"
)

func TestDigestOfProgramsIsOfEveryField(t *testing.T) {
	t.Parallel()
	digest := func(p programs.Program) [32]byte {
		return programsDigest(definedPrograms{"research": &p})
	}
	seen := map[[32]byte]string{programsDigest(nil): "none", digest(programs.Program{}): "an empty one"}
	for field := range reflect.TypeFor[programs.Program]().Fields() {
		var p programs.Program
		switch v := reflect.ValueOf(&p).Elem().FieldByIndex(field.Index); v.Addr().Interface().(type) {
		case *string:
			v.SetString("x")
		case *[]string:
			v.Set(reflect.ValueOf([]string{"x"}))
		case *uint32:
			v.SetUint(1)
		case *bool:
			v.SetBool(true)
		case *config.Pos:
			v.Set(reflect.ValueOf(config.Pos{Line: 1}))
		default:
			t.Fatalf("%s is of a type that this test does not know", field.Name)
		}
		d := digest(p)
		if other, ok := seen[d]; ok {
			t.Errorf("a program with %s has the digest of %s", field.Name, other)
		}
		seen[d] = field.Name
	}
}
