package daemon

import (
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/config"
)

func TestAResumeIsACauseToAppraise(t *testing.T) {
	t.Parallel()
	a := newAppraiser(config.Node{}, nil, nil, nil, nil)
	if cause := a.cause(); cause != "" {
		t.Errorf("at once: %q", cause)
	}
	a.slept -= time.Minute // as if the machine had been suspended that long since
	if cause := a.cause(); !strings.Contains(cause, "suspend") {
		t.Errorf("after a minute of suspension: %q", cause)
	}
	if cause := a.cause(); cause != "" {
		t.Errorf("a second time: %q", cause)
	}
}
