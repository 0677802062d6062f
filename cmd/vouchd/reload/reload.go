// Package reload keeps in force what was last loaded without a problem.
//
// Entries, credential definitions, programs and the appraisal policy are files
// that people change while the daemon runs. A change that cannot be loaded must
// neither stop the daemon nor take away what worked, and has to be told once, not
// at every look. [Value] is that rule, for all of them. In a directory it holds for
// each file: one that cannot be loaded holds back itself, and what contradicts it.
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

	"github.com/vouchd/vouchd/config"
)

// A Source is where a value comes from and what becomes of it.
type Source[T any] struct {
	Name  string // what it is, in the plural or not: "entries"
	Place string // where it is loaded from, for messages

	// Load reads what is on disk. Its errors are compared as values, so an
	// error that stays the same holds nothing that changes.
	Load func() (T, error)

	// Parse, in place of Load, makes a value of the *.yaml files in the directory
	// Place. Its errors are [config.Errors] where a file is at fault, and name it.
	Parse func([]config.File) (T, error)

	// Digest is of everything that makes one value differ from another.
	Digest func(T) [32]byte

	// Record, if there is one, makes a change durable before it takes effect: a
	// next value, or why what is on disk cannot be one. Where it fails,
	// everything stays as it is.
	Record func(ctx context.Context, next T, problem error) error

	// Apply, if there is one, puts a value in force. Nothing else is loaded or
	// told while it runs.
	Apply func(T)

	// Tell, if there is one, is told each new [State.Problem], after what else is new
	// is in force, and nil once there is none any more.
	Tell func(problem error)

	Logger *slog.Logger
}

// A Value is what was last loaded without a problem. It is safe for concurrent
// use, other than by the functions of its source.
type Value[T any] struct {
	source Source[T]

	reloading sync.Mutex    // held while loading, lest an older look replace a newer one; guards told
	told      error         // what was last wrong on disk, once that is told and recorded
	files     []config.File // that the value was made of

	mu    sync.Mutex // guards state
	state State[T]
}

// A State is what is in force, and whether that is what is on disk.
type State[T any] struct {
	Value   T
	Digest  [32]byte  // of Value
	Loaded  time.Time // when Value was; zero: nothing was loaded so far
	Problem error     // why what is on disk is not in force, [HeldBack] if that is some files; nil: it is
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
	next, files, held, problem := v.load()
	if problem != nil {
		return v.refuse(ctx, problem)
	}
	now := v.State()
	had, told := now.Problem != nil, held != nil && !v.wasTold(held)
	digest := v.source.Digest(next)
	differs := now.Loaded.IsZero() || digest != now.Digest
	if differs {
		if err := v.record(ctx, next, nil); err != nil {
			return true, err
		}
		now.Value, now.Digest, now.Loaded = next, digest, time.Now()
	}
	if told {
		v.source.Logger.Error(fmt.Sprintf("files of %s are not in force; the others are", v.source.Place), "err", held)
		if err := v.record(ctx, now.Value, held); err != nil {
			return true, err
		}
	}
	now.Problem, v.told = nil, nil
	if held != nil {
		now.Problem, v.told = held, held
	}
	v.files = files
	v.set(now)
	if differs && v.source.Apply != nil {
		v.source.Apply(next)
	}
	if told || had && held == nil {
		v.tell(now.Problem)
	}
	return differs || told || had && held == nil, nil
}

// load makes a value of what is on disk, and says of which files, and which are not in it.
func (v *Value[T]) load() (next T, files []config.File, held HeldBack, err error) {
	if v.source.Parse != nil {
		return parseFiles(v.source.Place, v.files, v.source.Parse)
	}
	next, err = v.source.Load()
	return next, nil, nil, err
}

// refuse tells a problem, unless it is the one that was told last.
func (v *Value[T]) refuse(ctx context.Context, problem error) (changed bool, err error) {
	if v.wasTold(problem) {
		return false, nil
	}
	v.source.Logger.Error(fmt.Sprintf("%s is invalid; keeping the previous %s", v.source.Place, v.source.Name), "err", problem)
	var none T
	if err := v.record(ctx, none, problem); err != nil {
		return true, err
	}
	v.told = problem
	v.setProblem(problem)
	v.tell(problem)
	return true, nil
}

func (v *Value[T]) wasTold(problem error) bool {
	return v.told != nil && reflect.DeepEqual(problem, v.told)
}

func (v *Value[T]) tell(problem error) {
	if v.source.Tell != nil {
		v.source.Tell(problem)
	}
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
