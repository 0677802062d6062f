package reader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/internal/format"
	"github.com/vouchd/vouchd/state"
)

// VerifyOptions say what a log is held against. The zero value checks that a
// log holds together and is signed by the key that it names.
type VerifyOptions struct {
	// TPM checks what only the machine's TPM could have signed. Without it
	// the anchors are not checked, and the report says so.
	TPM audit.TPMVerifier
	// Key is the note verifier key that the log must be signed with. Without
	// it, the key is the one that the log names; the TPM's statement vouches for
	// it where TPM is set.
	Key string
	// Checkpoint is a signed checkpoint from elsewhere, from a witness or the
	// SIEM, that the log must contain.
	Checkpoint []byte
	// Witnesses are the verifier keys of those that must have cosigned a state of
	// the log (see [ParseWitness]), and whose cosignatures are therefore more than
	// the log's own word.
	Witnesses []string
	// Counter is a value that an anchor of this log is known to have had: a log
	// whose last anchor has less was rolled back.
	Counter uint64
	// From is the first record that the copy must have, for a copy that is known to
	// begin later, such as an archive. What is missing before that must have been
	// removed by the daemon's own retention, which records it.
	From uint64
	// Live is for a log that a daemon still writes, or a copy of one: its end may
	// be unfinished and not anchored yet.
	Live bool
}

// Verify checks a copy of a log, in whole, and needs nothing but the copy. It
// holds a bounded part of it in memory. The error says only that the copy could
// not be read; what is wrong with it, the report says.
func Verify(ctx context.Context, fsys fs.FS, o VerifyOptions) (*Report, error) {
	r := &Report{Events: map[audit.Event]uint64{}, counts: map[string]int{}, Left: map[string]uint64{}, Findings: []Finding{}}
	v := &verifier{fsys: fsys, o: o, rep: r, chain: newChain(o, r), set: new(format.TileSet)}
	v.tiles = tileChecker{v: v}
	v.checkpoints = checkpointChecker{rep: r}
	err := v.run(ctx)
	v.checkpoints.finish()
	if err != nil {
		return nil, fmt.Errorf("verifying attestation log: %w", err)
	}
	v.end()
	r.conclude()
	return r, nil
}

// A verifier reads the log front to back.
type verifier struct {
	fsys  fs.FS
	o     VerifyOptions
	rep   *Report
	chain *chain

	vkey    string
	v       note.Verifier
	begun   bool
	set     *format.TileSet // of every record so far
	signed  uint64          // how many records a signed checkpoint covers
	pending []byte          // records since the last checkpoint, bundled
	waiting int             // how many
	name    string          // of the file being read
	at      leafAt          // the record at hand

	tiles tileChecker
	known []knownCheckpoint // that the tree has not reached yet

	witnesses   []witnessFile
	checkpoints checkpointChecker
}

// A leafAt is a leaf with what anchors need of the tree around it.
type leafAt struct {
	audit.Leaf
	root tlog.Hash // of the tree up to an announcement, and with it
}

// run reads the tiles as far as they are all there is, and then the segments.
func (v *verifier) run(ctx context.Context) error {
	// The checkpoint first: so the segments have all that it covers.
	if err := v.tiles.readCheckpoint(); err != nil {
		return err
	}
	if err := v.readWitnesses(); err != nil {
		return err
	}
	segs, err := format.OpenSegments(v.fsys, v.o.Live)
	if err != nil {
		return err
	}
	defer segs.Close()
	firsts := segs.Firsts
	if err := v.tiles.survey(); err != nil {
		return err
	}
	if len(firsts) == 0 && v.tiles.bundles == 0 {
		return fmt.Errorf("there is no log here, neither %s nor %s: %w", format.WALDir, format.TileDir, fs.ErrNotExist)
	}
	if v.tiles.bundles > 0 && (len(firsts) == 0 || v.tiles.from() < firsts[0]) {
		if err := v.bundles(ctx, segs); err != nil {
			return err
		}
	}
	for i, first := range firsts {
		f, err := segs.Open(i)
		if err != nil {
			return err
		}
		err = v.segment(ctx, f, first, i == len(firsts)-1)
		f.Close()
		if err != nil {
			return err
		}
	}
	if !v.begun {
		return nil
	}
	return v.tiles.end(ctx)
}

// rereads is how often a frame that is not whole is read again while a daemon writes.
const rereads = 3

func (v *verifier) segment(ctx context.Context, f *format.Still, first uint64, last bool) error {
	v.name = format.SegmentName(first)
	v.rep.Segments++
	frames := format.Frames(f, 0)
	kind, data, err := frames.Next()
	if err == io.EOF || err == nil && kind != format.KindSegment {
		err = fmt.Errorf("%w at offset 0: not a segment header", state.ErrNoFrame)
	}
	if err == nil {
		err = v.header(data, first)
	}
	if errors.Is(err, state.ErrNoFrame) { // a segment has its header before it has its name
		v.broken(err, 0, false)
		return nil
	}
	var tail []byte
	var damage error // why a crash can't have left the end
	for again := rereads; err == nil; {
		if err = ctx.Err(); err != nil {
			return err
		}
		if err = v.frame(frames); err == nil {
			again = rereads
			continue
		}
		if errors.Is(err, state.ErrNoFrame) {
			tail, damage = f.Tail(frames.Offset())
			if damage != nil && v.o.Live && last && again > 0 {
				again-- // what was read may have been half written, and be whole by now
				frames, err = f.Frames(frames.Offset()), nil
			}
		}
	}
	switch unfinished := v.waiting > 0 || len(tail) > 0; {
	case err == io.EOF && !unfinished:
		return nil
	case errors.Is(err, state.ErrNoFrame) && v.begun && damage == nil && !unfinished:
		return nil // zeros for what was to come
	case err == io.EOF, errors.Is(err, state.ErrNoFrame):
		v.broken(err, frames.Offset(), last && v.begun && damage == nil)
		return nil
	default:
		return fmt.Errorf("%s: %w", v.name, err)
	}
}

// header holds a segment against what came before it.
func (v *verifier) header(data []byte, first uint64) error {
	h, verifier, err := format.ParseSegmentHeader(data)
	if err != nil {
		return fmt.Errorf("%w at offset 0: %w", state.ErrNoFrame, err)
	}
	size := uint64(h.Tree.Size)
	if size != first {
		v.fail("segment-name", nil, fmt.Sprintf("the segment continues %d records and is named as if it were %d", size, first),
			"the file was renamed, so it may stand in for another one")
	}
	if !v.begun {
		v.open(h.Key, verifier)
		v.startAt(h.Tree)
		v.tiles.resume()
		return nil
	}
	switch {
	case h.Key != v.vkey:
		v.fail("foreign-segment", &size, fmt.Sprintf("the segment is of another log, %s", h.Key),
			"records of another host or log were put here")
	case size > v.size():
		v.fail("records-missing", &size, fmt.Sprintf("records %d to %d are missing", v.size(), size-1),
			"they were removed, or the file that held them is damaged")
	case size < v.size():
		v.fail("fork", &size, fmt.Sprintf("the segment goes on from %d records, but %d were there", size, v.size()),
			"the log was set back and continued in another way")
	case h.Tree.Root() != v.root():
		v.fail("fork", &size, "the segment continues other records than those before it",
			"records before it were changed, or the two come from different copies of the log")
	default:
		return nil
	}
	v.goOn(h.Tree)
	return nil
}

// open settles which key the log is held against.
func (v *verifier) open(vkey string, verifier note.Verifier) {
	v.begun, v.vkey, v.v = true, vkey, verifier
	v.checkpoints.key = verifier
	if v.o.Key != "" && v.o.Key != vkey {
		v.fail("wrong-key", nil, fmt.Sprintf("the log is signed by %s and not by %s", vkey, v.o.Key),
			"this is another log than the one asked about")
	}
	v.rep.Key, v.rep.Origin = printed(vkey), printed(verifier.Name())
	v.chain.vkey, v.chain.origin = vkey, verifier.Name()
	v.expect(v.o.Checkpoint, "the known checkpoint")
	v.expect(v.tiles.checkpoint, format.CheckpointName)
	v.expectWitnessed()
}

// startAt begins with a tree that the copy does not hold in full.
func (v *verifier) startAt(t format.Tree) {
	size := uint64(t.Size)
	v.rep.First = size
	v.goOn(t)
	if size > 0 {
		v.add(Note, "earlier-records", nil, fmt.Sprintf("this copy begins with record %d", size),
			"what came before was removed by retention, or left out; what is here still has to fit the signed checkpoints of the whole")
	}
	v.meet()
}

// goOn takes up another tree than the one grown so far.
func (v *verifier) goOn(t format.Tree) {
	v.checkpoints.start()     // those so far are not of a prefix of this tree
	v.signed = uint64(t.Size) // a segment's header has a checkpoint
	v.tiles.off = t.Size > 0  // the hashes before are not known
	v.set = &format.TileSet{Tree: t}
}

func (v *verifier) size() uint64    { return uint64(v.set.Tree.Size) }
func (v *verifier) root() tlog.Hash { return v.set.Tree.Root() }

func (v *verifier) frame(frames *state.FrameReader) error {
	start := frames.Offset()
	kind, data, err := frames.Next()
	if err != nil {
		return err
	}
	switch kind {
	case format.KindLeaf:
		v.pending = format.AppendBundled(v.pending, data)
		if v.waiting++; v.waiting > 2*format.MaxBatchRecords {
			index := v.size()
			v.fail("batch-size", &index, "more records in one batch than the daemon ever writes", "the checkpoints between them were removed")
			return v.settle()
		}
	case format.KindCheckpoint:
		if err := v.settle(); err != nil {
			return err
		}
		v.checkpoint(data)
	default:
		v.fail("unknown-frame", nil, fmt.Sprintf("a frame of kind %q at offset %d", kind, start),
			"no version known here writes such frames")
	}
	return nil
}

// settle goes through the batch that a checkpoint ends.
func (v *verifier) settle() error {
	for rest := v.pending; len(rest) > 0; {
		raw, tail, err := format.SplitBundle(rest)
		if err != nil {
			return err
		}
		if err := v.record(raw); err != nil {
			return err
		}
		rest = tail
	}
	v.drop()
	return nil
}

// drop forgets records that no checkpoint ends.
func (v *verifier) drop() { v.pending, v.waiting = v.pending[:0], 0 }

// record appends a record to the tree and follows what it says.
func (v *verifier) record(raw []byte) error {
	index := v.size()
	h := tlog.RecordHash(raw)
	if v.tiles.off {
		v.set.Tree.Add(h)
	} else if err := v.tiles.add(raw, h); err != nil {
		return err
	}
	v.meet()
	l, err := audit.DecodeLeaf(raw)
	if err != nil {
		v.fail("record-form", &index, err.Error(), "the daemon does not write such a record")
		return nil
	}
	if l.Index != index {
		v.fail("record-order", &index, fmt.Sprintf("record %d stands in the place of record %d", l.Index, index),
			"records were swapped, removed or put in")
	}
	v.at = leafAt{Leaf: l}
	if l.Event == audit.EventAnchorIntent {
		v.at.root = v.root()
	}
	v.chain.record(&v.at)
	return nil
}

// checkpoint has the one that ends a batch checked.
func (v *verifier) checkpoint(signed []byte) {
	v.rep.Checkpoints++
	v.rep.order++
	v.signed = v.size()
	v.checkpoints.add(signed, v.size(), v.root())
}

// broken deals with bytes that are no frame, or leaves without a checkpoint; torn is
// whether a crash can have left them. The next segment's header brings a tree to go
// on with.
func (v *verifier) broken(cause error, off int64, torn bool) {
	v.drop()
	place := fmt.Sprintf("%s at offset %d", v.name, off)
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
}

func (v *verifier) end() {
	r := v.rep
	r.Size = v.size()
	r.Root = v.root().String()
	for _, k := range v.known {
		if k.Size < r.First {
			v.add(Note, "earlier-checkpoint", nil, fmt.Sprintf("%s is of %d records, and this copy begins with record %d", k.source, k.Size, r.First),
				"it was not compared")
			continue
		}
		v.fail("rolled-back", nil, fmt.Sprintf("the log has %d records, and %s is of %d", r.Size, k.source, k.Size),
			"records at the end were removed, or this is an older copy")
	}
	v.missWitnesses()
	v.unsigned()
	v.chain.end(r.Size)
}

// unsigned tells of records that no signature covers: nobody with the log's key has
// vouched for them.
func (v *verifier) unsigned() {
	r := v.rep
	r.Signed = v.signed
	if r.Size <= v.signed {
		return
	}
	severity := Failure
	if v.o.Live && v.signed > r.First {
		severity = Warning // the tiles are ahead of the checkpoint for a moment
	}
	at := v.signed
	v.add(severity, "unsigned-records", &at, fmt.Sprintf("the last %d records are behind the last signed checkpoint", r.Size-v.signed),
		"anybody can have written them; they are not part of what was verified")
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
