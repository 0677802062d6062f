package process

import (
	"context"
	"errors"
	"testing"
)

func TestOneUserDoesNotTakeTheTurnsOfOthers(t *testing.T) {
	t.Parallel()
	var turns turns
	for range maxTurns {
		must(t, turns.take(t.Context(), 1))
	}
	must(t, turns.take(t.Context(), 2))
	turns.give(2)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := turns.take(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("a turn too many: got error %v, want %v", err, context.Canceled)
	}
	got := make(chan error)
	go func() { got <- turns.take(t.Context(), 1) }()
	turns.give(1)
	must(t, <-got)
	for range maxTurns {
		turns.give(1)
	}
	if len(turns.users) != 0 {
		t.Errorf("%d users are remembered", len(turns.users))
	}
}
