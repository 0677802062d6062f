package spire

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"github.com/vouchd/vouchd/identity"
)

// A Store keeps files by name. Save is atomic: after a crash the old contents are there, or
// the new.
type Store interface {
	identity.Store
	Remove(name string) error
}

// The files. Each is encrypted by a key that is sealed to this machine's TPM once, since a
// TPM takes a tenth of a second to seal and SVIDs change often; the name is authenticated
// with the contents, so that one file cannot stand for another.
const (
	keyFile       = "spire-key"
	agentFile     = "spire-agent"    // the agent's SVID
	bundleFile    = "spire-bundle"   // the trust domain's, and those of others
	entriesPrefix = "spire-entries-" // and a number: entries with revisions
	syncFile      = "spire-sync"     // when they were last right
	svidPrefix    = "spire-svid-"    // and a digest of the entry's ID: an SVID and its key
	storeVersion  = 1
)

// A vault is the store as it is used here.
type vault struct {
	store  Store
	aead   cipher.AEAD
	logger *slog.Logger
	shards [shards][sha256.Size]byte // digests of the entries in the store
}

// openVault unseals the store's key, or makes the first one. One that this TPM does not open
// is left alone: that may pass, and what it encrypts may be all there is while the server is
// away.
func openVault(ctx context.Context, store Store, sealer identity.Sealer, logger *slog.Logger) (*vault, error) {
	key, err := loadKey(ctx, store, sealer)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		key = make([]byte, 32)
		rand.Read(key)
		sealed, err := sealer.Seal(ctx, keyFile, key)
		if err == nil {
			err = store.Save(keyFile, storeVersion, sealed)
		}
		if err != nil {
			return nil, fmt.Errorf("keeping a key for what the SPIRE server gives: %w", err)
		}
	case err != nil:
		return nil, fmt.Errorf("what is kept of the SPIRE server cannot be opened: %w; if this is another machine or its TPM was replaced, remove %s from the state directory, and everything is asked for again", err, keyFile)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return &vault{store: store, aead: aead, logger: logger, shards: empty()}, err
}

func loadKey(ctx context.Context, store Store, sealer identity.Sealer) ([]byte, error) {
	sealed, _, err := store.Load(keyFile, storeVersion)
	if err != nil {
		return nil, err
	}
	key, err := sealer.Unseal(ctx, keyFile, sealed)
	if err == nil && len(key) != 32 {
		err = fmt.Errorf("%s has %d bytes", keyFile, len(key))
	}
	return key, err
}

func (v *vault) save(name string, data []byte) error {
	if err := v.store.Save(name, storeVersion, v.aead.Seal(nil, nil, data, []byte(name))); err != nil {
		return fmt.Errorf("keeping %s: %w", name, err)
	}
	return nil
}

// load returns nil for a file that is missing or of no use, which is told.
func (v *vault) load(name string) []byte {
	sealed, _, err := v.store.Load(name, storeVersion)
	var data []byte
	if err == nil {
		data, err = v.aead.Open(nil, nil, sealed, []byte(name))
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			v.useless(name, err)
		}
		return nil
	}
	return data
}

func (v *vault) useless(name string, err error) {
	v.logger.Warn("what is kept of the SPIRE server is of no use; asking for it again", "file", name, "err", err)
}

func (v *vault) remove(name string) error { return v.store.Remove(name) }

// svidFile is where an entry's SVID is kept.
func svidFile(entry string) string { return svidPrefix + digest([]byte(entry))[:32] }

// empty are the digests of no entries.
func empty() (digests [shards][sha256.Size]byte) {
	for n := range digests {
		digests[n] = sha256.Sum256(nil)
	}
	return digests
}
