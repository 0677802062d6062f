package audit

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
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

func FuzzParseWitness(f *testing.F) {
	f.Add("witness.example.org/w1+7f8c5a01+BBCVZ")
	f.Add((&Witness{name: "w1", key: make([]byte, ed25519.PublicKeySize)}).String())
	f.Fuzz(func(t *testing.T, vkey string) {
		w, err := ParseWitness(vkey)
		if err == nil && (w.String() != vkey || printed(w.Name()) != w.Name()) {
			t.Errorf("%q is read as %q", vkey, w)
		}
	})
}

// What a log keeps of a witness has one form: whatever is taken for it, both have
// signed.
func FuzzKeptOfAWitness(f *testing.F) {
	log, err := newSigner("example.org/log", ed25519.NewKeyFromSeed(bytes.Repeat([]byte{3}, 32)))
	if err != nil {
		f.Fatal(err)
	}
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{4}, 32))
	w := &Witness{name: "w1", key: key.Public().(ed25519.PublicKey)}
	sum := sha256.Sum256(append([]byte("w1\n\x04"), w.key...))
	w.hash = binary.BigEndian.Uint32(sum[:])
	signed, err := log.checkpoint(new(tree))
	if err != nil {
		f.Fatal(err)
	}
	text, _, _ := bytes.Cut(signed, []byte("\n\n"))
	sig := append(make([]byte, 8), ed25519.Sign(key, []byte("cosignature/v1\ntime 0\n"+string(text)+"\n"))...)
	line := fmt.Sprintf("— w1 %s\n", base64.StdEncoding.EncodeToString(append(sum[:4], sig...)))
	kept := []byte(w.String() + "\n\n" + string(signed) + line)
	if _, _, err := parseKept(w.fileName(), kept, log); err != nil {
		f.Fatal(err)
	}
	f.Add(kept)
	f.Add(kept[:len(kept)-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		got, c, err := parseKept(w.fileName(), b, log)
		if err == nil && (!bytes.Equal(b, kept) || got.String() != w.String() || c.Size != 0) {
			t.Errorf("%q passes", b)
		}
	})
}
