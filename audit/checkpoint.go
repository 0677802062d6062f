package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
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

// parseCheckpoint reads a body; it accepts only what Text makes.
func parseCheckpoint(text string) (Checkpoint, error) {
	lines := strings.SplitN(text, "\n", 4)
	if len(lines) != 4 {
		return Checkpoint{}, errors.New("a checkpoint has three lines")
	}
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil || size > maxSize {
		return Checkpoint{}, fmt.Errorf("checkpoint of size %.32q", lines[1])
	}
	root, err := parseHash(lines[2])
	if err != nil {
		return Checkpoint{}, fmt.Errorf("checkpoint's root: %w", err)
	}
	c := Checkpoint{Origin: lines[0], Size: size, Root: root}
	if c.Text() != text {
		return Checkpoint{}, errors.New("checkpoint is not in canonical form")
	}
	return c, nil
}

// parseHash reads a hash in base64, in the one form that it is written in.
func parseHash(s string) (tlog.Hash, error) {
	h, err := tlog.ParseHash(s)
	if err == nil && h.String() != s {
		err = errors.New("hash is not in canonical form")
	}
	return h, err
}

// A signer signs checkpoints (C2SP signed-note, type Ed25519).
type signer struct {
	key  ed25519.PrivateKey
	vkey string // the public half, as a note verifier key
	note.Verifier
}

func newSigner(origin string, key ed25519.PrivateKey) (*signer, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("the log needs an Ed25519 key")
	}
	if origin == "" || len(origin) > 200 || strings.ContainsFunc(origin, func(r rune) bool {
		return r <= ' ' || r > '~' || r == '+' || r == '"' || r == '\\'
	}) {
		return nil, fmt.Errorf("log origin %q: use a name like vouchd.example.org/log", origin)
	}
	vkey, err := note.NewEd25519VerifierKey(origin, key.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, err
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, err
	}
	return &signer{key: key, vkey: vkey, Verifier: v}, nil
}

// Sign implements [note.Signer].
func (s *signer) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.key, msg), nil }

// checkpoint signs the tree's state.
func (s *signer) checkpoint(t *tree) ([]byte, error) {
	c := Checkpoint{Origin: s.Name(), Size: uint64(t.size), Root: t.root()}
	return note.Sign(&note.Note{Text: c.Text()}, s)
}

// openCheckpoint checks a signed checkpoint that the log with this key wrote:
// its origin is the key's name, and nobody else's signature is on it.
func openCheckpoint(msg []byte, v note.Verifier) (Checkpoint, error) {
	if bytes.Count(msg, []byte("\n")) != 5 { // three lines, an empty one, one signature
		return Checkpoint{}, errors.New("checkpoint with more, or less, than the log's signature")
	}
	return openCosigned(msg, v)
}

// openCosigned is the same for a checkpoint that may have the signatures of
// witnesses too.
func openCosigned(msg []byte, v note.Verifier) (Checkpoint, error) {
	n, err := note.Open(msg, note.VerifierList(v))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("checkpoint's signature: %w", err)
	}
	// The note package reads base64 with loose bits at its end, too.
	if _, err := base64.StdEncoding.Strict().DecodeString(n.Sigs[0].Base64); err != nil {
		return Checkpoint{}, fmt.Errorf("checkpoint's signature: %w", err)
	}
	c, err := parseCheckpoint(n.Text)
	if err != nil {
		return Checkpoint{}, err
	}
	if c.Origin != v.Name() {
		return Checkpoint{}, fmt.Errorf("checkpoint of another log, %q", c.Origin)
	}
	return c, nil
}

// publicKey returns the Ed25519 key in a note verifier key.
func publicKey(vkey string) (ed25519.PublicKey, error) {
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 {
		return nil, errors.New("not a note verifier key")
	}
	key, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(key) != 1+ed25519.PublicKeySize || key[0] != 1 {
		return nil, errors.New("not an Ed25519 note verifier key")
	}
	return ed25519.PublicKey(key[1:]), nil
}

// logID names a log for good: the digest of its verifier key, origin included.
func logID(vkey string) [32]byte { return sha256.Sum256([]byte(vkey)) }

// anchorDomain separates anchors from whatever else the TPM signs.
const anchorDomain = "vouchd attestation log anchor v1\n"

// anchorDigest is what the TPM binds: the log and its state.
func anchorDigest(vkey string, c Checkpoint) [32]byte {
	id := logID(vkey)
	h := sha256.New()
	h.Write([]byte(anchorDomain))
	h.Write(id[:])
	h.Write([]byte(c.Text()))
	return [32]byte(h.Sum(nil))
}
