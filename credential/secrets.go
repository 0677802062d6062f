package credential

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/vouchd/vouchd/secret"
)

// Files keeps small files durably, as the daemon's state directory does.
type Files interface {
	// Load returns an error that satisfies [fs.ErrNotExist] for a missing file.
	Load(name string, version int) (data []byte, savedVersion int, err error)
	// Save replaces a file; when it returns nil, that survives a crash.
	Save(name string, version int, data []byte) error
}

// A Sealer keeps secrets that only this machine can open, as a TPM does.
type Sealer interface {
	// Seal returns a blob from which Unseal, with the same label, gives the
	// secret back on this machine and on no other.
	Seal(ctx context.Context, label string, secret []byte) ([]byte, error)
	Unseal(ctx context.Context, label string, blob []byte) ([]byte, error)
}

// Secrets keeps what brokers must not lose and nobody else may read, such as refresh
// tokens. Each is encrypted under its own key, which is sealed to the machine, since a TPM
// seals nothing larger than a key. It is safe for concurrent use.
type Secrets struct {
	files  Files
	sealer Sealer

	mu      sync.Mutex              // guards the maps
	locks   map[string]*sync.Mutex  // by name
	unsaved map[string]secret.Bytes // what could not be saved yet, and is nowhere else
}

// NewSecrets returns secrets kept in files under names that begin with
// "credential-".
func NewSecrets(files Files, sealer Sealer) *Secrets {
	return &Secrets{files: files, sealer: sealer, locks: make(map[string]*sync.Mutex), unsaved: make(map[string]secret.Bytes)}
}

// Lock keeps out everybody else who locks the name, until unlock. What is loaded
// under it is what the next save replaces.
func (s *Secrets) Lock(name string) (unlock func()) {
	s.mu.Lock()
	l := s.locks[name]
	if l == nil {
		l = new(sync.Mutex)
		s.locks[name] = l
	}
	s.mu.Unlock()
	l.Lock()
	return l.Unlock
}

const (
	secretsVersion = 1
	secretsPrefix  = "credential-"
)

type sealedSecret struct {
	Key  []byte `json:"key"`  // sealed
	Data []byte `json:"data"` // AES-256-GCM under the key, which encrypts this once
}

// Load returns a secret. The error satisfies [fs.ErrNotExist] if none is kept
// under the name. One that could not be saved is saved first: no secret is
// returned that is not durable.
func (s *Secrets) Load(ctx context.Context, name string) (secret.Bytes, error) {
	s.mu.Lock()
	unsaved, ok := s.unsaved[name]
	s.mu.Unlock()
	if ok {
		if err := s.Save(ctx, name, unsaved); err != nil {
			return secret.Bytes{}, err
		}
	}
	b, _, err := s.files.Load(secretsPrefix+name, secretsVersion)
	if err != nil {
		return secret.Bytes{}, err
	}
	var kept sealedSecret
	if err := json.Unmarshal(b, &kept); err != nil {
		return secret.Bytes{}, fmt.Errorf("reading secret %s: %w", name, err)
	}
	key, err := s.sealer.Unseal(ctx, secretsPrefix+name, kept.Key)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("secret %s does not open on this TPM: %w", name, err)
	}
	defer clear(key)
	aead, err := secretCipher(key)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("reading secret %s: %w", name, err)
	}
	plain, err := aead.Open(nil, make([]byte, aead.NonceSize()), kept.Data, []byte(name))
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("secret %s is not what was kept under that name", name)
	}
	return secret.Of(plain), nil
}

// Save keeps a secret durably in the place of the last one. After an error it
// stays in memory, and the next Load or Save tries again.
func (s *Secrets) Save(ctx context.Context, name string, value secret.Bytes) error {
	s.mu.Lock()
	s.unsaved[name] = value
	s.mu.Unlock()
	if err := s.save(ctx, name, value); err != nil {
		return fmt.Errorf("%w: secret %s: %w", ErrUnrecorded, name, err)
	}
	s.mu.Lock()
	delete(s.unsaved, name)
	s.mu.Unlock()
	return nil
}

func (s *Secrets) save(ctx context.Context, name string, value secret.Bytes) error {
	key := make([]byte, 32)
	rand.Read(key)
	defer clear(key)
	sealed, err := s.sealer.Seal(ctx, secretsPrefix+name, key)
	if err != nil {
		return fmt.Errorf("sealing: %w", err)
	}
	aead, err := secretCipher(key)
	if err != nil {
		return err
	}
	// The key is used once, so the nonce may be constant.
	b, err := json.Marshal(sealedSecret{Key: sealed, Data: aead.Seal(nil, make([]byte, aead.NonceSize()), value.Reveal(), []byte(name))})
	if err != nil {
		return err
	}
	return s.files.Save(secretsPrefix+name, secretsVersion, b)
}

func secretCipher(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
