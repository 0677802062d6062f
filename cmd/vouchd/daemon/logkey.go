package daemon

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/mod/sumdb/note"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/writer"
)

// The state files about the log, which lie outside of its directory: whoever removes
// or replaces that is found out.
const (
	logKey  = "log-key"  // seed of the key that signs checkpoints, sealed to this TPM
	logBorn = "log-born" // the counter's value when the key was made, signed by the AK
	logMark = "log-mark" // a signed checkpoint of what was anchored last
)

// A logState is the key that signs the log's checkpoints, and what is known of the
// log besides.
type logState struct {
	ed25519.PrivateKey
	born    *appraisal.Signed // nil for a key that a former version made
	begun   bool              // a log of this key exists
	mark    []byte            // nil: none was kept yet
	restart *writer.Restart   // nil: the log goes on
}

// logKey unseals the log's key, or makes one and seals it to this TPM.
func (m *machine) logKey(ctx context.Context) (*logState, error) {
	restart, err := m.endLog(ctx)
	if err != nil {
		return nil, err
	}
	k := &logState{restart: restart}
	seed, err := m.loadFile(logKey)
	if errors.Is(err, fs.ErrNotExist) {
		return k, m.makeLogKey(ctx, k)
	}
	if err == nil {
		seed, err = m.node.Unseal(ctx, logKey, seed)
	}
	if err == nil && len(seed) != ed25519.SeedSize {
		err = fmt.Errorf("it has %d bytes, want %d", len(seed), ed25519.SeedSize)
	}
	if err != nil {
		return nil, fmt.Errorf("loading the log's key: %w", err)
	}
	k.PrivateKey = ed25519.NewKeyFromSeed(seed)
	born, err := m.loadFile(logBorn)
	if err == nil {
		err = json.Unmarshal(born, &k.born)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("loading when the log's key was made: %w", err)
	}
	if k.mark, err = m.loadFile(logMark); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("loading how far the log was anchored: %w", err)
	}
	// Where it is known when the key was made, the counter tells whether there was a log.
	k.begun = k.mark != nil || k.born == nil
	return k, nil
}

func (m *machine) loadFile(name string) ([]byte, error) {
	b, _, err := m.state.Load(name, 1)
	return b, err
}

// makeLogKey has the key saved last, since without it the others say nothing.
func (m *machine) makeLogKey(ctx context.Context, k *logState) error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	blob, err := m.node.Seal(ctx, logKey, private.Seed())
	if err != nil {
		return fmt.Errorf("sealing the log's key: %w", err)
	}
	born, err := m.node.Born(ctx, public)
	if err != nil {
		return err
	}
	encoded, err := json.Marshal(born)
	if err != nil {
		return err
	}
	k.PrivateKey, k.born = private, &born
	if err := m.state.Remove(logMark); err != nil {
		return err
	}
	if err := m.state.Save(logBorn, 1, encoded); err != nil {
		return err
	}
	return m.state.Save(logKey, 1, blob)
}

// originOf names a log: for its trust domain and its key.
func originOf(td spiffeid.TrustDomain, key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return td.Name() + "/" + hex.EncodeToString(sum[:8])
}

// endLog does what was asked by an [audit.RestartRequest], in steps that a crash may part. What is
// left then is to begin the other log, which records it.
func (m *machine) endLog(ctx context.Context) (*writer.Restart, error) {
	b, err := m.loadFile(audit.RestartFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var r audit.RestartRequest
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return nil, fmt.Errorf("reading why another log is to be begun: %w", err)
	}
	if !r.Ended {
		if err := m.moveLog(ctx, &r); err != nil {
			return nil, fmt.Errorf("ending the log: %w", err)
		}
	}
	return &writer.Restart{Reason: r.Reason, Key: r.Key, Size: r.Size}, nil
}

func (m *machine) moveLog(ctx context.Context, r *audit.RestartRequest) error {
	if key, size, ok := m.formerLog(ctx); ok {
		r.Key, r.Size = key, size
	}
	to := m.state.Path("log-ended-" + time.Now().UTC().Format("20060102T150405.000Z"))
	if err := os.Rename(m.state.Path("log"), to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := m.saveRestart(r); err != nil {
		return err
	}
	sinks, err := filepath.Glob(m.state.Path("export-*")) // where they stand in the log that has ended
	if err != nil {
		return err
	}
	for _, path := range append(sinks, logMark, logBorn, logKey) {
		if err := m.state.Remove(filepath.Base(path)); err != nil {
			return err
		}
	}
	r.Ended = true
	return m.saveRestart(r)
}

func (m *machine) saveRestart(r *audit.RestartRequest) error {
	b, err := r.Encode()
	if err != nil {
		return err
	}
	return m.state.Save(audit.RestartFile, 1, b)
}

// formerLog returns the key of the log there is, as a note verifier key, and how many
// records it was anchored with. It is not known where the key can't be used any more.
func (m *machine) formerLog(ctx context.Context) (vkey string, size uint64, ok bool) {
	blob, err := m.loadFile(logKey)
	if err != nil {
		return "", 0, false
	}
	seed, err := m.node.Unseal(ctx, logKey, blob)
	if err != nil || len(seed) != ed25519.SeedSize {
		return "", 0, false
	}
	public := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	if vkey, err = note.NewEd25519VerifierKey(originOf(m.config.TrustDomain, public), public); err != nil {
		return "", 0, false
	}
	if mark, err := m.loadFile(logMark); err == nil {
		fmt.Sscanf(string(mark), "%s\n%d\n", new(string), &size) // origin and size (C2SP tlog-checkpoint)
	}
	return vkey, size, true
}

// An anchorer is the TPM as the log uses it.
type anchorer struct {
	*node.Node
	now *appraisal.Verified // what the TPM said as the log was opened
}

// Newest implements [audit.NewestAnchorer]. The counter is counted only once an
// anchor is durable, and so stands at the last anchor's value or one above.
func (a anchorer) Newest(_ context.Context, anchor []byte, digest [32]byte) error {
	if anchor == nil {
		if a.now.Born > 0 && a.now.Counter > a.now.Born {
			return fmt.Errorf("it has no anchor, and the TPM made %d with this log's key", a.now.Counter-a.now.Born)
		}
		return nil
	}
	last, err := a.now.Anchor(anchor, digest)
	switch {
	case err != nil:
		return fmt.Errorf("its last anchor: %w", err)
	case a.now.Counter > last.Counter+1:
		return fmt.Errorf("its last anchor has the value %d of the TPM's counter, which stands at %d", last.Counter, a.now.Counter)
	case a.now.Counter < last.Counter:
		return fmt.Errorf("the TPM's counter was set back: it stands at %d, and the log's last anchor has %d", a.now.Counter, last.Counter)
	}
	return nil
}
