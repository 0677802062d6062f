package state

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

// frames reads all of them, and returns where it stopped and why.
func frames(b []byte, most int) (got []string, at int64, err error) {
	r := NewFrameReader(bytes.NewReader(b), 0, most)
	for {
		kind, data, err := r.Next()
		if err != nil {
			return got, r.Offset(), err
		}
		got = append(got, string(kind)+string(data))
	}
}

func TestFramesComeBackAsTheyWereWritten(t *testing.T) {
	t.Parallel()
	b := AppendFrame(nil, 'A', []byte("one"))
	b = AppendFrame(b, 'B', nil)
	start := len(b)
	b = append(BeginFrame(b), bytes.Repeat([]byte{'x'}, 100_000)...)
	EndFrame(b, start, 'C')
	got, at, err := frames(b, 100_000)
	if err != io.EOF || at != int64(len(b)) || len(got) != 3 || got[0] != "Aone" || got[1] != "B" || len(got[2]) != 100_001 {
		t.Errorf("read %d frames up to %d of %d bytes, %v", len(got), at, len(b), err)
	}
}

// The bytes of a frame are in files of before, and must not change.
func TestFrameHasOneForm(t *testing.T) {
	t.Parallel()
	want := []byte("A\x00\x00\x00\x03\xf7\xc6\x9c\x35one")
	if got := AppendFrame(nil, 'A', []byte("one")); !bytes.Equal(got, want) {
		t.Errorf("a frame is %q, want %q", got, want)
	}
}

func TestFileCutAnywhereEndsAtItsLastWholeFrame(t *testing.T) {
	t.Parallel()
	first := AppendFrame(nil, 'A', []byte("one"))
	b := AppendFrame(first, 'A', []byte("two"))
	for length := range b {
		got, at, err := frames(b[:length], 100)
		switch whole := length == 0 || length == len(first); {
		case whole && err != io.EOF, !whole && !errors.Is(err, ErrNoFrame):
			t.Errorf("cut to %d bytes: %v", length, err)
		case length >= len(first) && (len(got) != 1 || at != int64(len(first))):
			t.Errorf("cut to %d bytes: %q up to %d", length, got, at)
		}
	}
}

func TestFrameThatWasChangedIsNone(t *testing.T) {
	t.Parallel()
	whole := AppendFrame(nil, 'A', []byte("one"))
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 1
		if got, at, err := frames(b, 100); !errors.Is(err, ErrNoFrame) || at != 0 {
			t.Errorf("byte %d changed: %q, %v", i, got, err)
		}
	}
	if _, _, err := frames(whole, 2); !errors.Is(err, ErrNoFrame) {
		t.Errorf("a frame of three bytes where two are the most: %v", err)
	}
}

func TestErrorOfTheFileIsNoTornFrame(t *testing.T) {
	t.Parallel()
	broken := errors.New("disk is broken")
	whole := AppendFrame(nil, 'A', []byte("one"))
	for _, length := range []int{0, 3, FrameHead + 1} {
		r := NewFrameReader(io.MultiReader(bytes.NewReader(whole[:length]), failing{broken}), 0, 100)
		if _, _, err := r.Next(); !errors.Is(err, broken) {
			t.Errorf("after %d bytes: %v", length, err)
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestFrameIsFoundBehindAnything(t *testing.T) {
	t.Parallel()
	frame := AppendFrame(nil, 'A', []byte("one"))
	for name, before := range map[string][]byte{"nothing": nil, "its own kind": []byte("AAAA"), "zeros": make([]byte, 50), "another": AppendFrame(nil, 'B', []byte("A"))} {
		if at, data := FindFrame(append(before, frame...), 'A', 100); at != len(before) || string(data) != "one" {
			t.Errorf("behind %s: at %d, %q", name, at, data)
		}
	}
	if at, _ := FindFrame(frame[:len(frame)-1], 'A', 100); at >= 0 {
		t.Errorf("half a frame at %d", at)
	}
	if at, _ := FindFrame(frame, 'A', 2); at >= 0 {
		t.Errorf("a frame larger than the most at %d", at)
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(AppendFrame(AppendFrame(nil, 'A', []byte("one")), 'B', nil))
	f.Add([]byte("A\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, at, _ := frames(b, 1<<20)
		var again []byte
		for _, frame := range got {
			again = AppendFrame(again, frame[0], []byte(frame[1:]))
		}
		if !bytes.Equal(again, b[:at]) {
			t.Errorf("read %q from %q", got, b[:at])
		}
	})
}
