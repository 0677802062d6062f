package door

import (
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/vouchd/vouchd/credential/policy"
	"github.com/vouchd/vouchd/redact"
)

// A screen takes the credential out of what passes by, and deals with what looks like
// another secret.
type screen struct {
	call   *call
	echoes *redact.Writer
	shapes *redact.ShapeWriter // nil if they are not looked for
	fixed  bool                // content has its length, and nothing in it can be replaced
}

func (c *call) screen(to io.Writer) *screen {
	s := &screen{call: c}
	if c.policy.Shapes != policy.Off {
		s.shapes = redact.Shapes(to, c.policy.Shapes != policy.Mark)
		to = s.shapes
	}
	s.echoes = c.secrets.Writer(to)
	return s
}

func (s *screen) Write(p []byte) (int, error) { return s.echoes.Write(p) }

// Close passes on the rest.
func (s *screen) Close() error {
	err := s.echoes.Close()
	if s.shapes != nil {
		err = errors.Join(err, s.shapes.Close())
	}
	return err
}

// counts returns what was found so far.
func (s *screen) counts() (redacted int, shapes map[string]int) {
	if s.shapes != nil {
		shapes = s.shapes.Counts()
	}
	return s.echoes.Count(), shapes
}

// tally adds what was found to the call's.
func (s *screen) tally() {
	redacted, shapes := s.counts()
	s.call.redacted += redacted
	if s.call.shapes == nil {
		s.call.shapes = make(map[string]int)
	}
	maps.Copy(s.call.shapes, shapes)
}

// withheld is the refusal of a response in which something was found that ends it, or nil.
func (s *screen) withheld() error {
	redacted, shapes := s.counts()
	if s.fixed && s.found() {
		return refuse(http.StatusBadGateway, "echo_blocked", "%v", errEcho)
	}
	return s.call.withhold(redacted, shapes)
}

// found reports whether something was found that may not pass.
func (s *screen) found() bool {
	redacted, shapes := s.counts()
	return redacted > 0 || len(shapes) > 0 && s.call.policy.Shapes != policy.Mark
}

// withheld is the same of all that was found.
func (c *call) withheld() error { return c.withhold(c.redacted, c.shapes) }

func (c *call) withhold(redacted int, shapes map[string]int) error {
	switch {
	case redacted > 0 && c.policy.Echo == policy.Block:
		return refuse(http.StatusBadGateway, "echo_blocked", "the response has the credential in it, and is withheld")
	case len(shapes) > 0 && c.policy.Shapes == policy.Block:
		return refuse(http.StatusBadGateway, "secret_blocked", "the response has what looks like another secret in it (%s), and is withheld", strings.Join(slices.Sorted(maps.Keys(shapes)), ", "))
	}
	return nil
}

// cleaned is the value of a header as it passes.
func (c *call) cleaned(v string) string {
	if len(v) < redact.ShortestShape {
		return c.scrub(v)
	}
	var b strings.Builder
	s := c.screen(&b)
	io.WriteString(s, v)
	s.Close() // a strings.Builder takes everything
	s.tally()
	return b.String()
}
