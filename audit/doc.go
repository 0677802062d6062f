// Package audit is the attestation log: every decision of the daemon as a
// durable record that a stranger can verify, back to the machine's TPM.
//
// This package says what a log holds. A [Record] is what a caller appends and a
// [Leaf] is how it stands in the log, in one canonical form. A [Checkpoint] is the
// log's signed word on its state. What the TPM proves passes through as bytes
// ([Anchorer], [TPMVerifier]).
//
// The rest is two halves that do not know each other. The writer, audit/writer,
// appends: its Append returns once the records are on disk. They are the leaves of
// a Merkle tree (RFC 6962); whatever becomes durable together ends in a checkpoint
// that the log's key signs (C2SP tlog-checkpoint), and from time to time the TPM
// binds the tree to a counter that can't go back. The reader, audit/reader, checks
// all of that on a copy, and that the records tell a history that can have
// happened. It needs no TPM, no network and nothing of this machine.
//
// Nobody, root included, can change, drop or cut off records that an anchor
// covers without the reader noticing. What stays out of reach: root on the live
// machine can drop records that no anchor covers yet, can stop the daemon from
// writing further ones, and can have the log's key sign a history that never
// was, from then on, for as long as it holds the machine. A copy that ends in a
// clean stop can be an old one: to tell, hold it against a later checkpoint or a
// later value of the TPM's counter.
//
// The form of the files is described in docs/log.md. The package imports nothing
// of vouchd.
package audit
