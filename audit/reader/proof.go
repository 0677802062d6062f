package reader

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/internal/format"
)

// The first lines of proofs: of a record in the log (C2SP tlog-proof), and of
// one state of the log continuing another.
const (
	proofTitle       = "c2sp.org/tlog-proof@v1"
	consistencyTitle = "vouchd consistency proof v1"
)

// maxProof bounds a proof, in bytes: a record in base64, 64 hashes and a
// checkpoint with witnesses.
const maxProof = 64 << 10

// Prove makes a proof that a record is in the log: a text that holds the record,
// its index, the hashes up to the root, and the checkpoint that the log
// published last. Whoever has the log's key checks it with [CheckProof], and
// needs nothing else. A record that is newer than the published checkpoint can't
// be proved yet; the daemon publishes one every minute and when it stops.
func Prove(ctx context.Context, fsys fs.FS, index uint64, vkey string) ([]byte, error) {
	signed, c, hashes, err := published(fsys, vkey)
	if err != nil {
		return nil, fmt.Errorf("proving record %d: %w", index, err)
	}
	if index >= c.Size {
		return nil, fmt.Errorf("proving record %d: the published checkpoint is of %d records; try again in a minute", index, c.Size)
	}
	path, err := tlog.ProveRecord(int64(c.Size), int64(index), hashes)
	if err != nil {
		return nil, fmt.Errorf("proving record %d: %w", index, err)
	}
	for e, err := range Records(ctx, fsys, index) {
		if err != nil {
			return nil, err
		}
		if e.Index != index {
			return nil, fmt.Errorf("proving record %d: the copy begins with record %d", index, e.Index)
		}
		if err := tlog.CheckRecord(path, int64(c.Size), c.Root, int64(index), tlog.RecordHash(e.Raw)); err != nil {
			return nil, fmt.Errorf("proving record %d: the record is not the one in the tree; see vouch log verify", index)
		}
		var b bytes.Buffer
		fmt.Fprintf(&b, "%s\nextra %s\nindex %d\n", proofTitle, base64.StdEncoding.EncodeToString(e.Raw), index)
		for _, h := range path {
			fmt.Fprintln(&b, h)
		}
		fmt.Fprintf(&b, "\n%s", signed)
		return b.Bytes(), nil
	}
	return nil, fmt.Errorf("proving record %d: it is not in this copy", index)
}

// CheckProof checks what [Prove] made, with the log's note verifier key alone.
// It returns the record and the checkpoint that it is proved under.
func CheckProof(proof []byte, vkey string) (Entry, audit.Checkpoint, error) {
	e, c, err := checkProof(proof, vkey)
	if err != nil {
		return Entry{}, audit.Checkpoint{}, fmt.Errorf("checking proof: %w", err)
	}
	return e, c, nil
}

func checkProof(proof []byte, vkey string) (e Entry, c audit.Checkpoint, err error) {
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return e, c, fmt.Errorf("log's key: %w", err)
	}
	lines, signed, err := splitProof(proof, proofTitle)
	if err != nil {
		return e, c, err
	}
	if len(lines) < 2 {
		return e, c, errors.New("it has no record or no index")
	}
	extra, ok := strings.CutPrefix(lines[0], "extra ")
	if !ok {
		return e, c, errors.New("it does not bring the record")
	}
	if e.Raw, err = base64.StdEncoding.Strict().DecodeString(extra); err != nil {
		return e, c, fmt.Errorf("its record: %w", err)
	}
	digits, ok := strings.CutPrefix(lines[1], "index ")
	if e.Index, err = strconv.ParseUint(digits, 10, 47); !ok || err != nil {
		return e, c, errors.New("its index can't be read")
	}
	path, err := parseHashes(lines[2:])
	if err != nil {
		return e, c, err
	}
	if c, err = format.OpenCosigned(signed, v); err != nil {
		return e, c, err
	}
	if err := tlog.CheckRecord(path, int64(c.Size), c.Root, int64(e.Index), tlog.RecordHash(e.Raw)); err != nil {
		return e, c, errors.New("the record is not in the log at this place")
	}
	if e.Leaf, err = audit.DecodeLeaf(e.Raw); err != nil {
		return e, c, err
	}
	return e, c, nil
}

// ProveConsistency makes a proof that the log at newSize records continues the
// log at oldSize. Both must be covered by the published checkpoint.
func ProveConsistency(fsys fs.FS, oldSize, newSize uint64, vkey string) ([]byte, error) {
	_, c, hashes, err := published(fsys, vkey)
	if err == nil && (oldSize == 0 || oldSize > newSize || newSize > c.Size) {
		err = fmt.Errorf("sizes must be between 1 and %d, the older first", c.Size)
	}
	var path tlog.TreeProof
	if err == nil {
		path, err = tlog.ProveTree(int64(newSize), int64(oldSize), hashes)
	}
	if err != nil {
		return nil, fmt.Errorf("proving that %d records continue %d: %w", newSize, oldSize, err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n%d\n%d\n", consistencyTitle, oldSize, newSize)
	for _, h := range path {
		fmt.Fprintln(&b, h)
	}
	b.WriteString("\n")
	return b.Bytes(), nil
}

// CheckConsistency checks what [ProveConsistency] made, for two checkpoints that
// the log with the key signed: that the later state continues the earlier one.
func CheckConsistency(proof, oldSigned, newSigned []byte, vkey string) error {
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return fmt.Errorf("checking consistency: log's key: %w", err)
	}
	older, err := format.OpenCosigned(oldSigned, v)
	if err != nil {
		return fmt.Errorf("checking consistency: older checkpoint: %w", err)
	}
	newer, err := format.OpenCosigned(newSigned, v)
	if err != nil {
		return fmt.Errorf("checking consistency: newer checkpoint: %w", err)
	}
	lines, rest, err := splitProof(proof, consistencyTitle)
	if err != nil || len(rest) > 0 || len(lines) < 2 {
		return errors.New("checking consistency: not a consistency proof")
	}
	if lines[0] != strconv.FormatUint(older.Size, 10) || lines[1] != strconv.FormatUint(newer.Size, 10) {
		return fmt.Errorf("checking consistency: the proof is of %.20s and %.20s records, the checkpoints of %d and %d", lines[0], lines[1], older.Size, newer.Size)
	}
	path, err := parseHashes(lines[2:])
	if err != nil {
		return fmt.Errorf("checking consistency: %w", err)
	}
	if err := tlog.CheckTree(path, int64(newer.Size), newer.Root, int64(older.Size), older.Root); err != nil {
		return errors.New("checking consistency: the newer state does not continue the older one: the log was forked")
	}
	return nil
}

// Extend returns the checkpoint that the log published last, signed, and the
// hashes that prove that it continues the log's state of oldSize records (RFC
// 6962 §2.1.2); none where oldSize is 0. A log that has fewer records than that
// is [ErrShorter].
func Extend(fsys fs.FS, oldSize uint64, vkey string) (signed []byte, c audit.Checkpoint, proof [][32]byte, err error) {
	signed, c, hashes, err := published(fsys, vkey)
	if err != nil {
		return nil, audit.Checkpoint{}, nil, fmt.Errorf("proving that the log continues %d records: %w", oldSize, err)
	}
	if oldSize > c.Size {
		return signed, c, nil, fmt.Errorf("%w: it published %d, and %d are known of", ErrShorter, c.Size, oldSize)
	}
	if oldSize == 0 {
		return signed, c, nil, nil
	}
	path, err := tlog.ProveTree(int64(c.Size), int64(oldSize), hashes)
	if err != nil {
		return nil, audit.Checkpoint{}, nil, fmt.Errorf("proving that the log continues %d records: %w", oldSize, err)
	}
	for _, h := range path {
		proof = append(proof, h)
	}
	return signed, c, proof, nil
}

// ErrShorter means that a log has fewer records than somebody has seen it have:
// its end was removed.
var ErrShorter = errors.New("the log has fewer records than it had")

// splitProof returns the lines between the title and the empty line, and what
// follows that.
func splitProof(proof []byte, title string) (lines []string, rest []byte, err error) {
	if len(proof) > maxProof {
		return nil, nil, fmt.Errorf("it has more than %d bytes", maxProof)
	}
	head, rest, ok := bytes.Cut(proof, []byte("\n\n"))
	lines = strings.Split(string(head), "\n")
	if !ok || lines[0] != title {
		return nil, nil, errors.New("not a proof that is known here")
	}
	return lines[1:], rest, nil
}

func parseHashes(lines []string) ([]tlog.Hash, error) {
	if len(lines) > 64 {
		return nil, errors.New("it has more than 64 hashes")
	}
	var hashes []tlog.Hash
	for _, line := range lines {
		h, err := format.ParseHash(line)
		if err != nil {
			return nil, fmt.Errorf("its hashes: %w", err)
		}
		hashes = append(hashes, h)
	}
	return hashes, nil
}

// published returns the checkpoint that the tiles belong to, and the hashes in
// the tiles, each proved before it is given.
func published(fsys fs.FS, vkey string) ([]byte, audit.Checkpoint, tlog.HashReader, error) {
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, audit.Checkpoint{}, nil, fmt.Errorf("log's key: %w", err)
	}
	signed, err := format.ReadBounded(fsys, format.CheckpointName, format.MaxFrame)
	if err != nil {
		return nil, audit.Checkpoint{}, nil, err
	}
	c, err := format.OpenCosigned(signed, v)
	if err != nil {
		return nil, audit.Checkpoint{}, nil, err
	}
	return signed, c, tlog.TileHashReader(tlog.Tree{N: int64(c.Size), Hash: c.Root}, tileReader{fsys}), nil
}

// A tileReader gives tlog the tiles of a log.
type tileReader struct{ fsys fs.FS }

func (tileReader) Height() int                     { return format.TileHeight }
func (tileReader) SaveTiles([]tlog.Tile, [][]byte) {}
func (r tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	all := make([][]byte, len(tiles))
	for i, t := range tiles {
		var err error
		if all[i], err = format.ReadTilePrefix(r.fsys, t); err != nil {
			return nil, err
		}
	}
	return all, nil
}
