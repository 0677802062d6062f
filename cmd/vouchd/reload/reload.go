// Package reload keeps in force what was last loaded without a problem.
//
// Entries, credential definitions, programs and the appraisal policy are files
// that people change while the daemon runs. A change that cannot be loaded must
// neither stop the daemon nor take away what worked, and has to be told once, not
// at every look. [Value] is that rule, for all of them.
//
// When to look is up to the caller, who watches the files; what a change means,
// to the functions of a [Source].
package reload

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"sync"
	"time"
)

// A Source is where a value comes from and what becomes of it.
type Source[T any] struct {
	Name  string // what it is, in the plural or not: "entries"
	Place string // where it is loaded from, for messages

	// Load reads what is on disk. Its errors are compared as values, so an
	// error that stays the same holds nothing that changes.
	Load func() (T, error)

	// Digest is of everything that makes one value differ from another.
	Digest func(T) [32]byte

	// Record, if there is one, makes a change durable before it takes effect: a
	// next value, or why what is on disk cannot be one. Where it fails,
	// everything stays as it is.
	Record func(ctx context.Context, next T, problem error) error

	// Apply, if there is one, puts a value in force. Nothing else is loaded or
	// told while it runs.
	Apply func(T)

	Logger *slog.Logger
}

// A Value is what was last loaded without a problem. It is safe for concurrent
// use, other than by the functions of its source.
type Value[T any] struct {
	source Source[T]

	reloading sync.Mutex // held while loading, lest an older look replace a newer one; guards told
	told      error      // what was last wrong on disk, once that is told and recorded

	mu    sync.Mutex // guards state
	state State[T]
}

// A State is what is in force, and whether that is what is on disk.
type State[T any] struct {
	Value   T
	Digest  [32]byte  // of Value
	Loaded  time.Time // when Value was; zero: nothing was loaded so far
	Problem error     // why what is on disk is not in force; nil: it is
}

// New returns a value of which nothing is loaded yet.
func New[T any](s Source[T]) *Value[T] { return &Value[T]{source: s} }

// Holding returns a value that is in force without having been loaded, recorded
// or applied: what there is where the files are missing.
func Holding[T any](s Source[T], first T) *Value[T] {
	return &Value[T]{source: s, state: State[T]{Value: first, Digest: s.Digest(first), Loaded: time.Now()}}
}

// State returns what is in force.
func (v *Value[T]) State() State[T] {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.state
}

// Reload puts in force what is on disk, if it can be loaded and differs from
// what is. Otherwise that stays, and State has the problem. It reports whether
// either changed. The error is that the change could not be recorded.
func (v *Value[T]) Reload(ctx context.Context) (changed bool, err error) {
	v.reloading.Lock()
	defer v.reloading.Unlock()
	next, problem := v.source.Load()
	if problem != nil {
		return v.refuse(ctx, problem)
	}
	was := v.State()
	digest := v.source.Digest(next)
	if !was.Loaded.IsZero() && digest == was.Digest {
		v.told = nil
		v.set(State[T]{was.Value, was.Digest, was.Loaded, nil})
		return was.Problem != nil, nil
	}
	if err := v.record(ctx, next, nil); err != nil {
		return true, err
	}
	v.told = nil
	v.set(State[T]{next, digest, time.Now(), nil})
	if v.source.Apply != nil {
		v.source.Apply(next)
	}
	return true, nil
}

// refuse tells a problem, unless it is the one that was told last.
func (v *Value[T]) refuse(ctx context.Context, problem error) (changed bool, err error) {
	if v.told != nil && reflect.DeepEqual(problem, v.told) {
		return false, nil
	}
	v.source.Logger.Error(fmt.Sprintf("%s is invalid; keeping the previous %s", v.source.Place, v.source.Name), "err", problem)
	var none T
	if err := v.record(ctx, none, problem); err != nil {
		return true, err
	}
	v.told = problem
	v.setProblem(problem)
	return true, nil
}

// record records a change. Where that fails, the failure is the problem, and the
// next look tries again.
func (v *Value[T]) record(ctx context.Context, next T, problem error) error {
	if v.source.Record == nil {
		return nil
	}
	err := v.source.Record(ctx, next, problem)
	if err != nil {
		v.told = nil
		v.setProblem(err)
		return fmt.Errorf("recording a change of %s; keeping the previous %[1]s: %w", v.source.Name, err)
	}
	return nil
}

func (v *Value[T]) set(s State[T]) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.state = s
}

func (v *Value[T]) setProblem(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.state.Problem = err
}
