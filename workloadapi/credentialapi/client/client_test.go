package client

import (
	"errors"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestOnlyTheAddressOfAUnixSocketIsTaken(t *testing.T) {
	t.Parallel()
	for endpoint, ok := range map[string]bool{
		"unix:///run/vouchd/agent.sock":      true,
		"unix:/run/vouchd/agent.sock":        true,
		"/run/vouchd/agent.sock":             false,
		"tcp://127.0.0.1:8081":               false,
		"unix:agent.sock":                    false,
		"unix://":                            false,
		"unix://user@/run/vouchd/agent.sock": false,
		"unix:///run/vouchd/agent.sock?x=y":  false,
		"unix:///run/vouchd/agent.sock#x":    false,
		"":                                   false,
	} {
		c, err := New(endpoint)
		if (err == nil) != ok {
			t.Errorf("%q: %v", endpoint, err)
		}
		if err == nil {
			c.Close()
		}
	}
}

func TestErrorSaysWhatCanBeDoneAboutIt(t *testing.T) {
	t.Parallel()
	for code, want := range map[codes.Code]struct {
		is    error
		again bool
	}{
		codes.NotFound:          {ErrNoLease, false},
		codes.PermissionDenied:  {ErrDenied, false},
		codes.Unavailable:       {nil, true},
		codes.ResourceExhausted: {nil, true},
		codes.Aborted:           {nil, true},
		codes.InvalidArgument:   {nil, false},
	} {
		err := (&Client{endpoint: "unix:///s"}).explain(t.Context(), "leasing x", status.Error(code, "why"))
		for _, known := range []error{ErrNoLease, ErrDenied} {
			if errors.Is(err, known) != (known == want.is) {
				t.Errorf("%v: is %v: %v", code, known, !(known == want.is))
			}
		}
		if MayTryAgain(err) != want.again {
			t.Errorf("%v: try again: %v", code, !want.again)
		}
	}
}
