package reader

import (
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/vouchd/vouchd/audit/internal/format"
)

// A checkpointChecker checks checkpoints on all processors, while the verifier
// reads on: a log that one caller at a time wrote has a signature for every
// record, and checking one takes ten times as long as all else about a record.
// It holds two chunks at most.
type checkpointChecker struct {
	rep     *Report
	key     note.Verifier
	next    *checkpointChunk
	running chan []Finding // what the chunk before has brought; nil: there is none
}

// checkpointsPerChunk is how many checkpoints are checked together.
const checkpointsPerChunk = 1024

type checkpointChunk struct {
	signed []byte // one after the other
	claims []checkpointClaim
}

// A checkpointClaim is what a checkpoint must say where it stands.
type checkpointClaim struct {
	from, to int // in signed
	size     uint64
	root     tlog.Hash
	order    uint64
}

// add has a checkpoint checked that ends the records so far.
func (c *checkpointChecker) add(signed []byte, size uint64, root tlog.Hash) {
	if c.next == nil {
		c.next = new(checkpointChunk)
	}
	b := c.next
	from := len(b.signed)
	b.signed = append(b.signed, signed...)
	b.claims = append(b.claims, checkpointClaim{from, len(b.signed), size, root, c.rep.order})
	if len(b.claims) == checkpointsPerChunk {
		c.start()
	}
}

// start waits for the chunk before, and begins with the next.
func (c *checkpointChecker) start() {
	c.wait()
	if c.next == nil {
		return
	}
	b, key, done := c.next, c.key, make(chan []Finding, 1)
	c.next, c.running = nil, done
	go func() { done <- b.check(key) }()
}

// finish returns once everything that was added is in the report.
func (c *checkpointChecker) finish() {
	c.start()
	c.wait()
}

func (c *checkpointChecker) wait() {
	if c.running == nil {
		return
	}
	for _, f := range <-c.running {
		c.rep.add(f)
	}
	c.running = nil
}

// check returns what is wrong with the chunk's checkpoints, in their order.
func (b *checkpointChunk) check(key note.Verifier) []Finding {
	found := make([]*Finding, len(b.claims))
	workers := min(runtime.GOMAXPROCS(0), len(b.claims))
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < len(b.claims); i += workers {
				found[i] = b.claims[i].check(b.signed, key)
			}
		})
	}
	wg.Wait()
	var list []Finding
	for _, f := range found {
		if f != nil {
			list = append(list, *f)
		}
	}
	return list
}

// check returns nil for a checkpoint that says what it must.
func (c *checkpointClaim) check(signed []byte, key note.Verifier) *Finding {
	last := max(c.size, 1) - 1
	f := Finding{Severity: Failure, Name: "tree-mismatch", Index: &last, order: c.order}
	got, err := format.OpenCheckpoint(signed[c.from:c.to], key)
	switch {
	case err != nil:
		f.Name, f.Message, f.Meaning = "checkpoint-signature", err.Error(), "somebody without the log's key wrote this checkpoint"
	case got.Size != c.size:
		f.Message, f.Meaning = fmt.Sprintf("the checkpoint is of %d records where there are %d", got.Size, c.size), "records were removed or put in"
	case got.Root != c.root:
		f.Message, f.Meaning = "the checkpoint is not of the records before it", "a record up to here was changed, swapped or taken from another log"
	default:
		return nil
	}
	return &f
}
