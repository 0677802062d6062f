package audit

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// VerifyOptions say what a log is held against. The zero value checks that a
// log holds together and is signed by the key that it names.
type VerifyOptions struct {
	// TPM checks what only the machine's TPM could have signed. Without it
	// the anchors are not checked, and the report says so.
	TPM TPMVerifier
	// Key is the note verifier key that the log must be signed with. Without
	// it, the key is the one that the log names; the TPM's statement vouches for
	// it where TPM is set.
	Key string
	// Checkpoint is a signed checkpoint from elsewhere, from a witness or the
	// SIEM, that the log must contain.
	Checkpoint []byte
	// Counter is the least value that the TPM's counter is known to have: a log
	// whose last anchor has less was rolled back.
	Counter uint64
	// Live is for a log that a daemon still writes, or a copy of one: its end may
	// be unfinished and not anchored yet.
	Live bool
}

// A TPMVerifier checks what only the TPM could have signed. It needs no TPM.
type TPMVerifier interface {
	// Statement checks what proves the machine's keys: the EK, the AK, the node
	// key certified by the AK, and logKey bound by a quote.
	Statement(statement []byte, logKey ed25519.PublicKey) (NodeFacts, error)
	// Anchor checks an anchor over digest, made by the machine whose statement
	// was checked last.
	Anchor(anchor []byte, digest [32]byte) (AnchorFacts, error)
}

// NodeFacts are what a statement proves.
type NodeFacts struct {
	EKSHA256 string           // of the EK's public key, hexadecimal
	AKName   string           // TPM name of the AK, hexadecimal
	NodeKey  crypto.PublicKey // signs issuing CAs; nil: an organisation's authority does
}

// AnchorFacts are what an anchor proves.
type AnchorFacts struct {
	Counter uint64 // of the NV index, one more with each anchor
	Resets  uint32 // the TPM's reset count: one more each boot
	Index   string // name of the NV index, hexadecimal
}

// Verify checks a copy of a log, in whole, and needs nothing but the copy. It
// holds a bounded part of it in memory. The error says only that the copy could
// not be read; what is wrong with it, the report says.
func Verify(ctx context.Context, fsys fs.FS, o VerifyOptions) (*Report, error) {
	r := &Report{Events: map[Event]uint64{}, counts: map[string]int{}, Left: map[string]uint64{}, Findings: []Finding{}}
	v := &verifier{o: o, rep: r, chain: newChain(o, r)}
	if err := v.segments(ctx, fsys); err != nil {
		return nil, fmt.Errorf("verifying attestation log: %w", err)
	}
	v.end()
	r.conclude()
	return r, nil
}

// A verifier reads the log front to back.
type verifier struct {
	o     VerifyOptions
	rep   *Report
	chain *chain

	vkey   string
	v      note.Verifier
	begun  bool
	tree   tree
	sealed tree     // the same up to the last checkpoint
	batch  []leafAt // leaves since then
	name   string   // of the file being read

	known *Checkpoint // o.Checkpoint, until it was met
}

// A leafAt is a leaf with what anchors need of the tree around it.
type leafAt struct {
	Leaf
	root tlog.Hash // of the tree up to an announcement, and with it
}

func (v *verifier) segments(ctx context.Context, fsys fs.FS) error {
	entries, err := fs.ReadDir(fsys, walDir)
	if err != nil {
		return err
	}
	firsts, err := segmentsIn(entries)
	if err != nil {
		return err
	}
	if len(firsts) == 0 {
		return fmt.Errorf("no segment in %s: %w", walDir, fs.ErrNotExist)
	}
	for i, first := range firsts {
		if err := v.segment(ctx, fsys, first, i == len(firsts)-1); err != nil {
			return err
		}
	}
	return nil
}

func (v *verifier) segment(ctx context.Context, fsys fs.FS, first uint64, last bool) error {
	v.name = segmentName(first)
	f, err := openStill(fsys, v.name)
	if err != nil {
		return err
	}
	defer f.Close()
	v.rep.Segments++
	frames := newFrameReader(f)
	kind, data, err := frames.next()
	if err == nil && kind != kindSegment {
		err = fmt.Errorf("%w at offset 0: not a segment header", errFrame)
	}
	if err == nil {
		err = v.header(data, first)
	}
	for err == nil {
		if err = ctx.Err(); err != nil {
			return err
		}
		err = v.frame(frames)
	}
	switch {
	case err == io.EOF && len(v.batch) == 0:
		return nil
	case err == io.EOF, errors.Is(err, errFrame):
		return v.broken(err, f, frames.off, last)
	default:
		return fmt.Errorf("%s: %w", v.name, err)
	}
}

// header holds a segment against what came before it.
func (v *verifier) header(data []byte, first uint64) error {
	h, verifier, err := parseSegmentHeader(data)
	if err != nil {
		return fmt.Errorf("%w at offset 0: %w", errFrame, err)
	}
	size := uint64(h.tree.size)
	if size != first {
		v.fail("segment-name", nil, fmt.Sprintf("the segment continues %d records and is named as if it were %d", size, first),
			"the file was renamed, so it may stand in for another one")
	}
	if !v.begun {
		v.open(h.vkey, verifier)
		v.tree, v.sealed = h.tree, h.tree
		v.rep.First = size
		if size > 0 {
			v.add(Note, "earlier-records", nil, fmt.Sprintf("this copy begins with record %d", size),
				"what came before was removed by retention, or left out; the signed checkpoint at its end is where this copy goes on from")
		}
		return nil
	}
	switch {
	case h.vkey != v.vkey:
		v.fail("foreign-segment", &size, fmt.Sprintf("the segment is of another log, %s", Escape(h.vkey)),
			"records of another host or log were put here")
	case size > uint64(v.tree.size):
		v.fail("records-missing", &size, fmt.Sprintf("records %d to %d are missing", v.tree.size, size-1),
			"they were removed, or the file that held them is damaged")
	case size < uint64(v.tree.size):
		v.fail("fork", &size, fmt.Sprintf("the segment goes on from %d records, but %d were there", size, v.tree.size),
			"the log was set back and continued in another way")
	case h.tree.root() != v.tree.root():
		v.fail("fork", &size, "the segment continues other records than those before it",
			"records before it were changed, or the two come from different copies of the log")
	}
	v.tree, v.sealed = h.tree, h.tree
	return nil
}

// open settles which key the log is held against.
func (v *verifier) open(vkey string, verifier note.Verifier) {
	v.begun, v.vkey, v.v = true, vkey, verifier
	if v.o.Key != "" && v.o.Key != vkey {
		v.fail("wrong-key", nil, fmt.Sprintf("the log is signed by %s and not by %s", Escape(vkey), Escape(v.o.Key)),
			"this is another log than the one asked about")
	}
	v.rep.Key, v.rep.Origin = vkey, verifier.Name()
	v.chain.vkey = vkey
	if len(v.o.Checkpoint) == 0 {
		return
	}
	c, err := openCheckpoint(v.o.Checkpoint, verifier)
	if err != nil {
		v.fail("known-checkpoint", nil, err.Error(), "the checkpoint to hold the log against is not of this log")
		return
	}
	v.known = &c
	v.meet()
}

// meet compares the checkpoint from elsewhere once the tree has its size.
func (v *verifier) meet() {
	if v.known == nil || uint64(v.tree.size) != v.known.Size {
		return
	}
	if v.tree.root() != v.known.Root {
		v.fail("fork", nil, fmt.Sprintf("the first %d records are not those that the known checkpoint stands for", v.known.Size),
			"this copy and the log that was seen earlier have different histories")
	}
	v.known = nil
}

func (v *verifier) frame(frames *frameReader) error {
	start := frames.off
	kind, data, err := frames.next()
	if err != nil {
		return err
	}
	switch kind {
	case kindLeaf:
		v.leaf(data, start)
	case kindCheckpoint:
		v.checkpoint(data, start)
	default:
		v.fail("unknown-frame", nil, fmt.Sprintf("%s: a frame of kind %q at offset %d", v.name, kind, start),
			"no version known here writes such frames")
	}
	return nil
}

func (v *verifier) leaf(data []byte, off int64) {
	index := uint64(v.tree.size)
	v.tree.add(tlog.RecordHash(data))
	v.meet()
	l, err := DecodeLeaf(data)
	if err != nil {
		v.fail("record-form", &index, err.Error(), "the daemon does not write such a record")
		return
	}
	if l.Index != index {
		v.fail("record-order", &index, fmt.Sprintf("record %d stands in the place of record %d", l.Index, index),
			"records were swapped, removed or put in")
	}
	at := leafAt{Leaf: l}
	if l.Event == EventAnchorIntent {
		at.root = v.tree.root()
	}
	v.batch = append(v.batch, at)
	if len(v.batch) > 2*maxBatchRecords {
		v.fail("batch-size", &index, "more records in one batch than the daemon ever writes", "the checkpoints between them were removed")
		v.settle()
	}
}

func (v *verifier) checkpoint(data []byte, off int64) {
	v.rep.Checkpoints++
	defer v.settle()
	size := uint64(v.tree.size)
	at := new(uint64)
	*at = max(size, 1) - 1
	c, err := openCheckpoint(data, v.v)
	switch {
	case err != nil:
		v.fail("checkpoint-signature", at, err.Error(), "somebody without the log's key wrote this checkpoint")
	case c.Size != size:
		v.fail("tree-mismatch", at, fmt.Sprintf("the checkpoint is of %d records where there are %d", c.Size, size),
			"records were removed or put in")
	case c.Root != v.tree.root():
		v.fail("tree-mismatch", at, "the checkpoint is not of the records before it",
			"a record up to here was changed, swapped or taken from another log")
	}
}

// settle goes through the batch that a checkpoint ended.
func (v *verifier) settle() {
	for i := range v.batch {
		v.chain.record(&v.batch[i])
	}
	clear(v.batch)
	v.batch = v.batch[:0]
	v.sealed = v.tree
}

// broken deals with bytes that are no frame, or leaves without a checkpoint.
// The next segment's header brings a tree to go on with.
func (v *verifier) broken(cause error, f *still, off int64, last bool) error {
	v.batch = v.batch[:0]
	place := fmt.Sprintf("%s at offset %d", v.name, off)
	torn := last && v.begun && cause == io.EOF
	if last && v.begun && !torn {
		var err error
		if torn, err = f.tornAt(off); err != nil {
			return err
		}
	}
	switch {
	case torn && v.o.Live:
		v.rep.add(Finding{Severity: Note, Name: "torn-end", Place: place, Message: "the log ends in an unfinished batch",
			Meaning: "it is being written; nobody was told of these records yet"})
	case torn:
		v.rep.add(Finding{Severity: Failure, Name: "torn-end", Place: place, Message: "the log ends in an unfinished batch",
			Meaning: "the daemon crashed and was not started since, or the end was cut off"})
	case cause == io.EOF:
		v.rep.add(Finding{Severity: Failure, Name: "checkpoint-missing", Place: place, Message: "the segment does not end with a checkpoint",
			Meaning: "its end was cut off"})
	default:
		v.rep.add(Finding{Severity: Failure, Name: "damage", Place: v.name, Message: cause.Error(),
			Meaning: "the file was changed, or the disk damaged it; what follows in the file can't be read"})
	}
	v.tree = v.sealed // records that do not count are not in the tree either
	return nil
}

func (v *verifier) end() {
	r := v.rep
	r.Size = uint64(v.tree.size)
	root := v.tree.root()
	r.Root = base64.StdEncoding.EncodeToString(root[:])
	if v.known != nil {
		switch {
		case v.known.Size < r.First:
			v.add(Note, "known-checkpoint", nil, fmt.Sprintf("the known checkpoint is of %d records, and this copy begins with record %d", v.known.Size, r.First),
				"it was not compared")
		default:
			v.fail("rolled-back", nil, fmt.Sprintf("the log has %d records, and the known checkpoint %d", r.Size, v.known.Size),
				"records at the end were removed, or this is an older copy")
		}
	}
	v.chain.end(r.Size)
}

func (v *verifier) add(s Severity, name string, index *uint64, message, meaning string) {
	f := Finding{Severity: s, Name: name, Index: index, Message: message, Meaning: meaning}
	if index == nil {
		f.Place = v.name
	}
	v.rep.add(f)
}

func (v *verifier) fail(name string, index *uint64, message, meaning string) {
	v.add(Failure, name, index, message, meaning)
}
