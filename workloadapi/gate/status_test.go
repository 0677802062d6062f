package gate

import (
	"errors"
	"strings"
	"testing"
)

func TestAReasonOfAnyLengthFitsIntoAStatus(t *testing.T) {
	t.Parallel()
	if got := brief(errors.New(strings.Repeat("é", 100_000))); len(got) > 500 {
		t.Errorf("%d bytes", len(got))
	}
}
