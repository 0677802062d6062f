package reader

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/audittest"
)

func TestReaderFollowsWhileSegmentsTurnIntoTiles(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opt.SegmentBytes = 50 << 10
	l := h.start()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	const want = 3000
	done := make(chan error, 1)
	go func() {
		var next uint64
		for e, err := range Follow(ctx, os.DirFS(h.dir), 0, time.Millisecond) {
			if err != nil {
				done <- err
				return
			}
			if e.Index != next {
				done <- fmt.Errorf("record %d where %d should be", e.Index, next)
				return
			}
			if next++; next == want {
				done <- nil
				return
			}
		}
		done <- fmt.Errorf("ended after %d records: %w", next, ctx.Err())
	}()
	for l.Status().Size < want {
		h.append(l, audittest.Attested(1), audittest.Attested(2), audittest.Attested(3))
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	h.stop(l)
}

func TestRecordsOfALogFitTheSchema(t *testing.T) {
	t.Parallel()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(audit.Schema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("record.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("record.json")
	if err != nil {
		t.Fatal(err)
	}
	for e, err := range Records(context.Background(), smallLog(t), 0) {
		if err != nil {
			t.Fatal(err)
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(e.Raw))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(v); err != nil {
			t.Errorf("%s: %v", e.Raw, err)
		}
	}
}
