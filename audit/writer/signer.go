package writer

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/internal/format"
)

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
func (s *signer) checkpoint(t *format.Tree) ([]byte, error) {
	c := audit.Checkpoint{Origin: s.Name(), Size: uint64(t.Size), Root: t.Root()}
	return note.Sign(&note.Note{Text: c.Text()}, s)
}
