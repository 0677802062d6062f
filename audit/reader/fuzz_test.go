package reader

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
	"testing"

	"golang.org/x/mod/sumdb/note"
)

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
	vkey, signed := emptyLog(f, "example.org/log")
	log, err := note.NewVerifier(vkey)
	if err != nil {
		f.Fatal(err)
	}
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{4}, 32))
	w := &Witness{name: "w1", key: key.Public().(ed25519.PublicKey)}
	sum := sha256.Sum256(append([]byte("w1\n\x04"), w.key...))
	w.hash = binary.BigEndian.Uint32(sum[:])
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
