package audit

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"strconv"
)

// A Checkpoint is the log's signed word on its state: so many records, with
// this root (C2SP tlog-checkpoint, without extension lines).
type Checkpoint struct {
	Origin string
	Size   uint64
	Root   [32]byte
}

// Text returns the checkpoint's body, the text that is signed and anchored.
func (c Checkpoint) Text() string {
	return c.Origin + "\n" + strconv.FormatUint(c.Size, 10) + "\n" + base64.StdEncoding.EncodeToString(c.Root[:]) + "\n"
}

// LogID returns what names a log for good: the SHA-256 of its note verifier key,
// in hexadecimal.
func LogID(vkey string) string {
	id := sha256.Sum256([]byte(vkey))
	return hex.EncodeToString(id[:])
}
