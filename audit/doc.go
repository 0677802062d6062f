// Package audit is the attestation log: every decision of the daemon as a
// durable record that a stranger can verify, back to the machine's TPM.
//
// [Log.Append] returns once its records are on disk. The records are the leaves
// of a Merkle tree (RFC 6962); whatever becomes durable together ends in a
// checkpoint that the log's key signs (C2SP tlog-checkpoint), and from time to
// time the TPM binds the tree to a counter that can't go back ([Anchorer]).
// [Verify] reads a copy of the log and checks all of that, and that the records
// tell a history that can have happened. It needs no TPM, no network and
// nothing of this machine. [Records] reads without checking proofs.
//
// Nobody, root included, can change, drop or cut off records that an anchor
// covers without Verify saying so. What stays out of reach: root on the live
// machine can drop records that no anchor covers yet, can stop the daemon from
// writing further ones, and can have the log's key sign a history that never
// was, from then on, for as long as it holds the machine. A copy that ends in a
// clean stop can be an old one: to tell, hold it against a later checkpoint or a
// later value of the TPM's counter ([VerifyOptions]).
//
// The form of the files is described in docs/log.md. The package imports nothing
// of vouchd: what comes from the TPM passes through it as bytes.
package audit
