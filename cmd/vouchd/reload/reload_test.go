package reload

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/config"
)

// disk is what there is to load, and what became of it.
type disk struct {
	text     string
	problem  error
	full     error // what recording fails with
	recorded []string
	applied  []string
	said     bytes.Buffer
}

func (d *disk) source() Source[string] {
	return Source[string]{
		Name: "entries", Place: "entries.d",
		Load:   func() (string, error) { return d.text, d.problem },
		Digest: func(s string) [32]byte { return sha256.Sum256([]byte(s)) },
		Record: func(_ context.Context, next string, problem error) error {
			if d.full != nil {
				return d.full
			}
			if problem != nil {
				next = "refused: " + problem.Error()
			}
			d.recorded = append(d.recorded, next)
			return nil
		},
		Apply:  func(s string) { d.applied = append(d.applied, s) },
		Logger: slog.New(slog.NewTextHandler(&d.said, nil)),
	}
}

// look reloads and checks whether that changed anything.
func look(t *testing.T, v *Value[string], changes bool) {
	t.Helper()
	if changed, err := v.Reload(t.Context()); err != nil || changed != changes {
		t.Errorf("Reload = %v, %v, want %v", changed, err, changes)
	}
}

// broken returns a new error, as every look at a broken file does.
func broken(line int) error {
	var es config.Errors
	es.Add(config.Pos{File: "entries.d/a.yaml", Line: line}, "no selectors")
	return es.Err()
}

func check(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func TestUnchangedDigestIsNeitherRecordedNorApplied(t *testing.T) {
	t.Parallel()
	d := &disk{text: "a"}
	v := New(d.source())
	look(t, v, true)
	loaded := v.State().Loaded
	look(t, v, false)
	d.text = "b"
	look(t, v, true)
	check(t, "recorded", d.recorded, []string{"a", "b"})
	check(t, "applied", d.applied, []string{"a", "b"})
	if s := v.State(); s.Value != "b" || s.Problem != nil || s.Loaded.Before(loaded) {
		t.Errorf("State = %+v", s)
	}
}

func TestNothingAtAllIsAValueThatIsRecordedOnce(t *testing.T) {
	t.Parallel()
	d := new(disk)
	v := New(d.source())
	look(t, v, true)
	look(t, v, false)
	check(t, "recorded", d.recorded, []string{""})
}

func TestValueHeldFromTheStartIsNotRecorded(t *testing.T) {
	t.Parallel()
	d := new(disk)
	v := Holding(d.source(), "")
	look(t, v, false)
	d.text = "a"
	look(t, v, true)
	check(t, "recorded", d.recorded, []string{"a"})
}

func TestBadValueLeavesThePreviousOneUntilAGoodOneReplacesIt(t *testing.T) {
	t.Parallel()
	d := &disk{text: "a"}
	v := New(d.source())
	look(t, v, true)
	d.text, d.problem = "", broken(1)
	look(t, v, true)
	if s := v.State(); s.Value != "a" || s.Problem == nil {
		t.Errorf("State = %+v", s)
	}
	d.text, d.problem = "b", nil
	look(t, v, true)
	if s := v.State(); s.Value != "b" || s.Problem != nil {
		t.Errorf("State = %+v", s)
	}
	check(t, "applied", d.applied, []string{"a", "b"})
	if said := d.said.String(); !strings.Contains(said, "entries.d is invalid; keeping the previous entries") {
		t.Errorf("it said %s", said)
	}
}

func TestBadValueAtTheStartLeavesNothingInForce(t *testing.T) {
	t.Parallel()
	d := &disk{problem: broken(1)}
	v := New(d.source())
	look(t, v, true)
	if s := v.State(); !s.Loaded.IsZero() || s.Problem == nil {
		t.Errorf("State = %+v", s)
	}
	check(t, "applied", d.applied, nil)
}

func TestRepairedValueThatIsStillInForceClearsTheProblemAlone(t *testing.T) {
	t.Parallel()
	d := &disk{text: "a"}
	v := New(d.source())
	look(t, v, true)
	d.problem = broken(1)
	look(t, v, true)
	d.problem = nil
	look(t, v, true)
	if s := v.State(); s.Value != "a" || s.Problem != nil {
		t.Errorf("State = %+v", s)
	}
	check(t, "applied", d.applied, []string{"a"})
	d.problem = broken(1) // the same again, which was repaired meanwhile
	look(t, v, true)
	if n := len(d.recorded); n != 3 {
		t.Errorf("recorded %q, want the value and two refusals", d.recorded)
	}
}

func TestSameProblemIsToldOnce(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		problem func() error
	}{
		{"of a file's lines", func() error { return broken(1) }},
		{"of the system", func() error { return &fs.PathError{Op: "open", Path: "entries.d", Err: fs.ErrPermission} }},
		{"wrapped", func() error { return errors.Join(broken(1), fs.ErrPermission) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := new(disk)
			v := New(d.source())
			for i := range 3 {
				d.problem = tt.problem()
				look(t, v, i == 0)
			}
			if n := strings.Count(d.said.String(), "is invalid"); n != 1 || len(d.recorded) != 1 {
				t.Errorf("told %d times, recorded %q", n, d.recorded)
			}
			d.problem = broken(2)
			look(t, v, true)
			if n := strings.Count(d.said.String(), "is invalid"); n != 2 {
				t.Errorf("another problem: told %d times in all, want 2", n)
			}
		})
	}
}

func TestWhatCannotBeRecordedDoesNotTakeEffectAndIsTriedAgain(t *testing.T) {
	t.Parallel()
	full := errors.New("no space left")
	d := &disk{text: "a"}
	v := New(d.source())
	look(t, v, true)
	d.full = full
	for _, change := range []func(){
		func() { d.text = "b" },
		func() { d.problem = broken(1) },
	} {
		change()
		for range 2 {
			if _, err := v.Reload(t.Context()); !errors.Is(err, full) {
				t.Errorf("Reload = %v, want %v", err, full)
			}
			if s := v.State(); s.Value != "a" || !errors.Is(s.Problem, full) {
				t.Errorf("State = %+v", s)
			}
		}
	}
	d.full = nil
	look(t, v, true)
	if s := v.State(); s.Value != "a" || errors.Is(s.Problem, full) {
		t.Errorf("State = %+v, want the file's problem", s)
	}
	d.problem = nil
	look(t, v, true)
	check(t, "applied", d.applied, []string{"a", "b"})
}
