package reader

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/internal/format"
)

// maxWitnesses bounds how many witnesses a copy of a log may have.
const maxWitnesses = 64

// cosignatureV1 is the type of an Ed25519 cosignature's key (C2SP
// tlog-cosignature, Format).
const cosignatureV1 = 4

// A Witness is somebody elsewhere who signs that a log had a state, and that
// every state it signed before led to that one (C2SP tlog-cosignature, the type
// of Ed25519). It implements [note.Verifier].
type Witness struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

// ParseWitness reads a witness's verifier key, as its operator publishes it:
// name+hash+key, where the key is of type 4.
func ParseWitness(vkey string) (*Witness, error) {
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 || len(vkey) > 512 || strings.ContainsFunc(parts[0], func(r rune) bool { return r <= ' ' || r > '~' }) || parts[0] == "" {
		return nil, fmt.Errorf("%.80q is not a witness's key; write it as its operator publishes it, name+hash+key", vkey)
	}
	key, err := base64.StdEncoding.Strict().DecodeString(parts[2])
	if err != nil || len(key) == 0 {
		return nil, fmt.Errorf("the key of witness %q is not in base64", parts[0])
	}
	if key[0] != cosignatureV1 || len(key) != 1+ed25519.PublicKeySize {
		return nil, fmt.Errorf("the key of witness %q is of type %d; a witness has one of type %d (cosignature/v1, Ed25519)", parts[0], key[0], cosignatureV1)
	}
	sum := sha256.Sum256(append([]byte(parts[0]+"\n"), key...))
	w := &Witness{name: parts[0], hash: binary.BigEndian.Uint32(sum[:]), key: key[1:]}
	if w.String() != vkey {
		return nil, fmt.Errorf("the key of witness %q does not have the hash %.16q", parts[0], parts[1])
	}
	return w, nil
}

// String returns the witness's verifier key.
func (w *Witness) String() string {
	return fmt.Sprintf("%s+%08x+%s", w.name, w.hash, base64.StdEncoding.EncodeToString(append([]byte{cosignatureV1}, w.key...)))
}

// Name implements [note.Verifier].
func (w *Witness) Name() string { return w.name }

// KeyHash implements [note.Verifier].
func (w *Witness) KeyHash() uint32 { return w.hash }

// Verify implements [note.Verifier]: sig is a time and a signature over it and
// the checkpoint's body (C2SP tlog-cosignature, Ed25519 signed message).
func (w *Witness) Verify(msg, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize || binary.BigEndian.Uint64(sig) > math.MaxInt64 {
		return false
	}
	head := "cosignature/v1\ntime " + strconv.FormatUint(binary.BigEndian.Uint64(sig), 10) + "\n"
	return ed25519.Verify(w.key, append([]byte(head), msg...), sig[8:])
}

// A Cosigned is a checkpoint that a witness has signed, too.
type Cosigned struct {
	audit.Checkpoint
	Time time.Time // by the witness's clock
	note []byte    // with the log's signature and the witness's
}

// Cosigned takes the witness's signature out of its answer to the submission
// of a signed checkpoint: any number of signature lines, of which those of
// other keys are ignored (C2SP tlog-witness, add-checkpoint).
func (w *Witness) Cosigned(signed, answer []byte, log note.Verifier) (Cosigned, error) {
	for line := range bytes.Lines(answer) {
		if !bytes.HasPrefix(line, []byte("— "+w.name+" ")) {
			continue
		}
		c, err := w.open(append(bytes.Clone(signed), line...), log)
		if err == nil {
			return c, nil
		}
	}
	return Cosigned{}, fmt.Errorf("the answer has no cosignature by %s that verifies", w.name)
}

// open reads a checkpoint with exactly two signatures, the log's and the
// witness's, in the one form that it can have.
func (w *Witness) open(signed []byte, log note.Verifier) (Cosigned, error) {
	if bytes.Count(signed, []byte("\n")) != 6 { // three lines, an empty one, two signatures
		return Cosigned{}, errors.New("checkpoint with more, or less, than the log's signature and the witness's")
	}
	n, err := note.Open(signed, note.VerifierList(log, w))
	if err != nil {
		return Cosigned{}, fmt.Errorf("cosigned checkpoint: %w", err)
	}
	if len(n.Sigs) != 2 || n.Sigs[0].Name != log.Name() || n.Sigs[1].Name != w.name {
		return Cosigned{}, errors.New("checkpoint without the log's signature, or without the witness's behind it")
	}
	c, err := format.ParseCheckpoint(n.Text)
	if err != nil {
		return Cosigned{}, err
	}
	if c.Origin != log.Name() {
		return Cosigned{}, fmt.Errorf("cosigned checkpoint of another log, %q", c.Origin)
	}
	var at []byte
	for _, s := range n.Sigs {
		if at, err = base64.StdEncoding.Strict().DecodeString(s.Base64); err != nil {
			return Cosigned{}, fmt.Errorf("cosigned checkpoint: %w", err)
		}
	}
	return Cosigned{Checkpoint: c, Time: time.Unix(int64(binary.BigEndian.Uint64(at[4:])), 0).UTC(), note: signed}, nil
}

// fileName is where a log keeps what the witness signed.
func (w *Witness) fileName() string {
	sum := sha256.Sum256([]byte(w.String()))
	return path.Join(format.WitnessDir, hex.EncodeToString(sum[:8]))
}

// File returns the file, by its name in the log's directory, that keeps what the
// witness signed, and its contents.
func (w *Witness) File(c Cosigned) (name string, contents []byte) {
	return w.fileName(), fmt.Appendf(nil, "%s\n\n%s", w, c.note)
}

// Kept returns what the witness signed last of the log with the key vkey. The
// error satisfies [fs.ErrNotExist] if it signed nothing yet.
func (w *Witness) Kept(log fs.FS, vkey string) (Cosigned, error) {
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return Cosigned{}, fmt.Errorf("log's key: %w", err)
	}
	_, c, err := readKept(log, w.fileName(), v)
	if err != nil {
		return Cosigned{}, fmt.Errorf("%s: %w", w.fileName(), err)
	}
	return c, nil
}

func readKept(fsys fs.FS, name string, log note.Verifier) (*Witness, Cosigned, error) {
	b, err := format.ReadBounded(fsys, name, format.MaxFrame)
	if err != nil {
		return nil, Cosigned{}, err
	}
	return parseKept(name, b, log)
}

// parseKept reads the contents of a file of format.WitnessDir: the witness's key, an
// empty line, the cosigned checkpoint.
func parseKept(name string, b []byte, log note.Verifier) (*Witness, Cosigned, error) {
	vkey, signed, ok := bytes.Cut(b, []byte("\n\n"))
	if !ok {
		return nil, Cosigned{}, errors.New("not a cosigned checkpoint")
	}
	w, err := ParseWitness(string(vkey))
	if err != nil {
		return nil, Cosigned{}, err
	}
	c, err := w.open(signed, log)
	if err == nil && name != w.fileName() {
		err = errors.New("the file's name is that of another witness")
	}
	return w, c, err
}

// witnessFiles lists the files of format.WitnessDir.
func witnessFiles(fsys fs.FS) ([]string, error) {
	entries, err := fs.ReadDir(fsys, format.WitnessDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), format.TempSuffix) {
			names = append(names, path.Join(format.WitnessDir, e.Name()))
		}
	}
	if len(names) > maxWitnesses {
		return nil, fmt.Errorf("%s has %d files; at most %d are read", format.WitnessDir, len(names), maxWitnesses)
	}
	return names, nil
}
