package lease

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/credential"
)

// Every pair of a stage and an event is decided, and a lease does what is.
func TestEveryEventInEveryStageIsDecided(t *testing.T) {
	t.Parallel()
	for s := range stage(stages) {
		for e := range event(events) {
			l := &lease{Lease: credential.Lease{Credential: "api", State: shown[s]}, stage: s}
			want := life[s][e]
			m, err := l.take(e)
			switch want.decision {
			case taken:
				if err != nil || l.stage != want.to || l.State != shown[want.to] || m != want.must || l.recalled {
					t.Errorf("%s in stage %d leads to %d (%s), %v; want %d", eventNames[e], s, l.stage, l.State, err, want.to)
				}
			case deferred:
				if err != nil || l.stage != s || m != nothing || !l.recalled || !l.inRequest() {
					t.Errorf("%s in stage %d is not left to the request under way: %v", eventNames[e], s, err)
				}
			case refused:
				if err == nil || l.stage != s || m != nothing || l.recalled {
					t.Errorf("%s in stage %d is taken, and leads to %d", eventNames[e], s, l.stage)
				}
			default:
				t.Errorf("%s in stage %d is not decided; say so in life", eventNames[e], s)
			}
		}
	}
	for e, name := range eventNames {
		if name == "" {
			t.Errorf("event %d has no name", e)
		}
	}
	for s, state := range shown {
		if state == "" {
			t.Errorf("stage %d is shown as nothing", s)
		}
	}
}

// reach is every stage that some events lead to from one.
func reach(from stage) map[stage]bool {
	seen := map[stage]bool{from: true}
	for todo := []stage{from}; len(todo) > 0; todo = todo[1:] {
		for _, t := range life[todo[0]] {
			if t.decision == taken && !seen[t.to] {
				seen[t.to] = true
				todo = append(todo, t.to)
			}
		}
	}
	return seen
}

func TestEveryLeaseCanEndAndNoneComesBack(t *testing.T) {
	t.Parallel()
	if got := reach(reserved); len(got) != stages {
		t.Errorf("from the first stage %d of %d are reached", len(got), stages)
	}
	for s := range stage(stages) {
		got := reach(s)
		if !got[revoked] && !got[expired] && !got[dropped] {
			t.Errorf("stage %d has no end", s)
		}
		for back := reserved; s >= revoking && back < revoking; back++ {
			if got[back] {
				t.Errorf("a lease that ends in stage %d comes back to %d", s, back)
			}
		}
		// What is not planned is nowhere; what is, the log and the upstream see the end of.
		if s > reserved && got[dropped] && s != dropped {
			t.Errorf("stage %d is dropped without a word", s)
		}
	}
}

func TestNothingCountsThatIsNotDurable(t *testing.T) {
	t.Parallel()
	// By what comes into being or ends with the event.
	for e, want := range map[event]must{plan: both, issue: both, extend: both, refuse: recorded, renew: journaled, attempt: journaled, giveUp: both, confirm: closed, runOut: closed} {
		for s := range stage(stages) {
			if got := life[s][e]; got.decision == taken && got.must != want {
				t.Errorf("%s in stage %d makes %d durable, want %d", eventNames[e], s, got.must, want)
			}
		}
	}
	for s := range stage(stages) {
		for e, got := range life[s] {
			if got.decision == taken && got.must == closed != (got.to == revoked || got.to == expired) {
				t.Errorf("%s in stage %d leads to %d, and leaves the journal: %v", eventNames[e], s, got.to, got.must == closed)
			}
		}
	}
}

// A crash may come at any stage, and the next start continues with what the
// journal says.
func TestStageAfterARestart(t *testing.T) {
	t.Parallel()
	for s, want := range map[credential.State]stage{
		credential.Planned: planned, credential.Active: active, credential.Revoking: revoking, credential.Stuck: stuck,
		credential.Revoked: revoking, credential.Expired: revoking, "of a later version": revoking,
	} {
		if got := stageOf(s); got != want {
			t.Errorf("%s continues at %d, want %d", s, got, want)
		}
	}
	for s := reserved; s <= stuck; s++ {
		if again := stageOf(shown[s]); shown[again] != shown[s] {
			t.Errorf("stage %d is %s before a restart and %s after", s, shown[s], shown[again])
		}
	}
}

func TestOnlyTakeChangesAStage(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var changes []string
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if a, ok := n.(*ast.AssignStmt); ok && slices.ContainsFunc(a.Lhs, setsStage) {
					changes = append(changes, f.Name.Name)
				}
				return true
			})
		}
	}
	if changes = slices.Compact(changes); !slices.Equal(changes, []string{"take"}) {
		t.Errorf("%v change the stage or state of a lease, want take alone", changes)
	}
}

func setsStage(e ast.Expr) bool {
	s, ok := e.(*ast.SelectorExpr)
	return ok && (s.Sel.Name == "stage" || s.Sel.Name == "State" || s.Sel.Name == "recalled")
}
