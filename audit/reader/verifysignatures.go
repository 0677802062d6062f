package reader

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/internal/format"
)

// A checkpointChecker checks checkpoints on all processors, while the verifier
// reads on. It holds two chunks at most.
//
// A log that one caller at a time wrote has a signature for every record, and
// checking one takes ten times as long as all else about a record. So only the last
// one of a chunk is checked with the key. It covers what the others of the chunk say:
// each of these must be, word for word, the checkpoint of the tree as it was there, and
// that tree is a prefix of the one that is signed (RFC 6962 §2.1). A checkpoint that
// says anything else is refused without a look at its signature; one whose signature
// alone was destroyed, with the frame's checksum mended, still says what is proven.
// Where the last one fails, each is checked, to name the first that does.
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
	last := len(b.claims) - 1
	found := make([]*Finding, len(b.claims))
	found[last] = b.claims[last].check(b.signed, key)
	covered := found[last] == nil
	b.each(func(i int) {
		if i < last && !(covered && b.claims[i].says(b.signed, key)) {
			found[i] = b.claims[i].check(b.signed, key)
		}
	})
	var list []Finding
	for _, f := range found {
		if f != nil {
			list = append(list, *f)
		}
	}
	return list
}

// each calls do for each claim, on all processors.
func (b *checkpointChunk) each(do func(i int)) {
	workers := min(runtime.GOMAXPROCS(0), len(b.claims))
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < len(b.claims); i += workers {
				do(i)
			}
		})
	}
	wg.Wait()
}

// says tells whether a checkpoint is, byte for byte, what the log's key would sign
// where it stands, but for the signature.
func (c *checkpointClaim) says(signed []byte, key note.Verifier) bool {
	claim := audit.Checkpoint{Origin: key.Name(), Size: c.size, Root: c.root}
	rest, ok := bytes.CutPrefix(signed[c.from:c.to], []byte(claim.Text()+"\n— "+key.Name()+" "))
	if !ok || len(rest) != base64.StdEncoding.EncodedLen(4+ed25519.SignatureSize)+1 || rest[len(rest)-1] != '\n' {
		return false
	}
	var sig [4 + ed25519.SignatureSize + 2]byte
	n, err := base64.StdEncoding.Strict().Decode(sig[:], rest[:len(rest)-1])
	return err == nil && n == 4+ed25519.SignatureSize && binary.BigEndian.Uint32(sig[:]) == key.KeyHash()
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
