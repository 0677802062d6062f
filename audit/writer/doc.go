// Package writer appends to the attestation log and keeps it on disk.
//
// A [Log] is one process's hold on one directory. [Log.Append] returns once its
// records are durable; concurrent callers share a write, a sync and a checkpoint.
// In the background the log anchors itself in the TPM, turns full segments into
// tiles, and removes the oldest records once it is as large as it may be.
//
// [Open] recovers a log that a crash left behind: it cuts off an unfinished batch
// and records that. It repairs nothing else. Reading and verifying are
// audit/reader's; the two packages share only the form of the files.
package writer
