// Package reader reads an attestation log that somebody else wrote, and checks it.
//
// [Verify] checks a copy: that every record is under a checkpoint that the log's
// key signed, that tiles and segments agree, that the anchors are the TPM's and
// none is missing, and that the records tell a history that can have happened.
// [Records] and [Follow] read without checking proofs; [Prove] and [Archive] hand
// parts of the log on. Package analyst answers an auditor's questions.
//
// It relies on the copy and on the keys that the caller names, and on nothing
// else. It never imports the writer, anything that opens a TPM, or net/http:
// rules_test.go holds it to that, so an auditor can build it anywhere and read what
// it does. A copy is hostile input. Whatever is read is bounded in size and count,
// and text is escaped before it is printed.
package reader
