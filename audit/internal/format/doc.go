// Package format is the form of the log's files, which the writer and the reader
// share: segments of frames, the Merkle tree, tiles, and signed checkpoints.
//
// It is internal because nothing outside of audit has business with a frame or a
// tile: callers have records, auditors have a report. Functions here take bytes and
// an [io/fs.FS], never write, and check what they read only as far as its form
// goes; docs/log.md describes that form. Whether the contents are to be believed is
// the reader's to judge.
package format
