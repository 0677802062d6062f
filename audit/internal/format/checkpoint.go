package format

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/vouchd/vouchd/audit"
)

// ParseCheckpoint reads a body; it accepts only what Text makes.
func ParseCheckpoint(text string) (audit.Checkpoint, error) {
	lines := strings.SplitN(text, "\n", 4)
	if len(lines) != 4 {
		return audit.Checkpoint{}, errors.New("a checkpoint has three lines")
	}
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil || size > maxSize {
		return audit.Checkpoint{}, fmt.Errorf("checkpoint of size %.32q", lines[1])
	}
	root, err := ParseHash(lines[2])
	if err != nil {
		return audit.Checkpoint{}, fmt.Errorf("checkpoint's root: %w", err)
	}
	c := audit.Checkpoint{Origin: lines[0], Size: size, Root: root}
	if c.Text() != text {
		return audit.Checkpoint{}, errors.New("checkpoint is not in canonical form")
	}
	return c, nil
}

// ParseHash reads a hash in base64, in the one form that it is written in.
func ParseHash(s string) (tlog.Hash, error) {
	h, err := tlog.ParseHash(s)
	if err == nil && h.String() != s {
		err = errors.New("hash is not in canonical form")
	}
	return h, err
}

// OpenCheckpoint checks a signed checkpoint that the log with this key wrote:
// its origin is the key's name, and nobody else's signature is on it.
func OpenCheckpoint(msg []byte, v note.Verifier) (audit.Checkpoint, error) {
	if bytes.Count(msg, []byte("\n")) != 5 { // three lines, an empty one, one signature
		return audit.Checkpoint{}, errors.New("checkpoint with more, or less, than the log's signature")
	}
	return OpenCosigned(msg, v)
}

// OpenCosigned is the same for a checkpoint that may have the signatures of
// witnesses too.
func OpenCosigned(msg []byte, v note.Verifier) (audit.Checkpoint, error) {
	n, err := note.Open(msg, note.VerifierList(v))
	if err != nil {
		return audit.Checkpoint{}, fmt.Errorf("checkpoint's signature: %w", err)
	}
	// The note package reads base64 with loose bits at its end, too.
	if _, err := base64.StdEncoding.Strict().DecodeString(n.Sigs[0].Base64); err != nil {
		return audit.Checkpoint{}, fmt.Errorf("checkpoint's signature: %w", err)
	}
	c, err := ParseCheckpoint(n.Text)
	if err != nil {
		return audit.Checkpoint{}, err
	}
	if c.Origin != v.Name() {
		return audit.Checkpoint{}, fmt.Errorf("checkpoint of another log, %q", c.Origin)
	}
	return c, nil
}

// anchorDomain separates anchors from whatever else the TPM signs.
const anchorDomain = "vouchd attestation log anchor v1\n"

// AnchorDigest is what the TPM binds: the log and its state.
func AnchorDigest(vkey string, c audit.Checkpoint) [32]byte {
	id := sha256.Sum256([]byte(vkey)) // see audit.LogID
	h := sha256.New()
	h.Write([]byte(anchorDomain))
	h.Write(id[:])
	h.Write([]byte(c.Text()))
	return [32]byte(h.Sum(nil))
}
