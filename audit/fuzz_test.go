package audit

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

func FuzzFrames(f *testing.F) {
	f.Add(tinySegment(f))
	f.Add(appendFrame(nil, kindLeaf, nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := newFrameReader(bytes.NewReader(data))
		var again []byte
		for {
			kind, payload, err := r.next()
			if err != nil {
				break
			}
			again = appendFrame(again, kind, payload)
		}
		if !bytes.HasPrefix(data, again) || int64(len(again)) != r.off {
			t.Errorf("read %x, which is not what was there", again)
		}
		if at := findCheckpoint(data); at >= 0 {
			kind, _, err := newFrameReader(bytes.NewReader(data[at:])).next()
			if err != nil || kind != kindCheckpoint {
				t.Errorf("found a checkpoint at %d, where reading says %q, %v", at, kind, err)
			}
		}
	})
}

func FuzzVerify(f *testing.F) {
	whole := tinySegment(f)
	f.Add(whole)
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Verify(context.Background(), oneSegment(data), withTPM())
		if err == nil && r.OK && !bytes.Equal(data, whole) {
			t.Errorf("another log than the one written holds: %s", r.Verdict)
		}
		if err == nil {
			if err := r.WriteText(io.Discard); err != nil {
				t.Error(err)
			}
		}
	})
}

func FuzzCheckProof(f *testing.F) {
	h := tinyLog(f, 1)
	proof, err := Prove(context.Background(), h.image(), 1, h.vkey())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(proof)
	f.Fuzz(func(t *testing.T, data []byte) {
		e, _, err := CheckProof(data, h.vkey())
		if err == nil && e.Index != 1 {
			t.Errorf("proved record %d, which the log's key never signed for here", e.Index)
		}
	})
}

func FuzzReadArchive(f *testing.F) {
	h := tinyLog(f, 1)
	var b bytes.Buffer
	if err := Archive(context.Background(), h.image(), &b, 0); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		fsys, err := ReadArchive(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		Verify(context.Background(), fsys, withTPM())
	})
}

// tinySegment is a log that the first version wrote. It must verify for good.
func tinySegment(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "v1.wal"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLogOfTheFirstVersionStillVerifies(t *testing.T) {
	t.Parallel()
	r := verifyImage(t, oneSegment(tinySegment(t)), withTPM())
	if !r.OK || len(r.Findings) != 0 || r.Size == 0 {
		t.Errorf("%s %+v", r.Verdict, r.Findings)
	}
}

// A record can hold only what this package names: nothing that takes whatever it
// is given, so no secret can slip in under a key of its own.
func TestRecordHasNoFreeFormField(t *testing.T) {
	t.Parallel()
	var check func(name string, typ reflect.Type)
	check = func(name string, typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Map, reflect.Interface, reflect.Func, reflect.Chan, reflect.UnsafePointer:
			t.Errorf("%s is a %s", name, typ)
		case reflect.Pointer, reflect.Slice, reflect.Array:
			check(name, typ.Elem())
		case reflect.Struct:
			if typ == reflect.TypeFor[time.Time]() {
				return
			}
			for f := range typ.Fields() {
				check(name+"."+f.Name, f.Type)
			}
		}
	}
	check("Leaf", reflect.TypeFor[Leaf]())
}
