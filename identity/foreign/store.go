package foreign

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"
)

const (
	stateVersion = 1
	indexFile    = "federation" // names the trust domains of which something is kept
)

// fileOf is where a domain's bundle is kept. Its name may be longer than a file's.
func fileOf(name string) string {
	digest := sha256.Sum256([]byte(name))
	return indexFile + "-" + hex.EncodeToString(digest[:16])
}

// stored is what a state file has.
type stored struct {
	TrustDomain string    `json:"trust_domain"`
	Document    string    `json:"document"`
	Highest     uint64    `json:"highest_sequence"`
	File        string    `json:"bundle_file_sha256,omitempty"` // that was taken last
	Since       time.Time `json:"since"`
	Fetched     time.Time `json:"fetched,omitzero"`
}

func (h *held) stored() stored {
	return stored{TrustDomain: h.TrustDomain.Name(), Highest: h.highest, File: hexOf(h.file), Since: h.since, Fetched: h.fetched}
}

func hexOf(digest [sha256.Size]byte) string {
	if digest == [sha256.Size]byte{} {
		return ""
	}
	return hex.EncodeToString(digest[:])
}

// save keeps a bundle. The index has its name first, so nothing is kept that is not named.
func (k *Keeper) save(s stored) error {
	k.storing.Lock()
	defer k.storing.Unlock()
	names, err := k.index()
	if err != nil {
		return err
	}
	if !slices.Contains(names, s.TrustDomain) {
		if err := k.saveIndex(append(names, s.TrustDomain)); err != nil {
			return err
		}
	}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return k.o.Store.Save(fileOf(s.TrustDomain), stateVersion, data)
}

func (k *Keeper) index() (names []string, err error) {
	data, _, err := k.o.Store.Load(indexFile, stateVersion)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &names)
	}
	return names, err
}

func (k *Keeper) saveIndex(names []string) error {
	data, err := json.Marshal(names)
	if err != nil {
		return err
	}
	return k.o.Store.Save(indexFile, stateVersion, data)
}

// load puts in force what is kept of a domain, unless something is already, and what its file
// has. Where what is kept can't be read, nothing is: what was in force is then unknown, and
// the file may be older.
func (k *Keeper) load(ctx context.Context, h *held) {
	if k.locked(func() bool { return h.bundle == nil }) {
		err := k.restore(h)
		if k.locked(func() bool { first := h.broken == nil; h.broken = err; return err != nil && first }) {
			k.o.Logger.Error("the kept bundle of a trust domain cannot be read, so it is not trusted", "trust_domain", h.TrustDomain, "err", err)
		}
		if err != nil {
			return
		}
	}
	k.readFile(ctx, h)
}

func (k *Keeper) restore(h *held) error {
	data, _, err := k.o.Store.Load(fileOf(h.TrustDomain.Name()), stateVersion)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var s stored
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		return err
	}
	if s.TrustDomain != h.TrustDomain.Name() {
		return fmt.Errorf("what is kept of %s is of %s", h.TrustDomain, s.TrustDomain)
	}
	b, err := ParseBundle(h.TrustDomain, []byte(s.Document))
	if err != nil {
		return fmt.Errorf("the kept bundle of %s: %w", h.TrustDomain, err)
	}
	file, err := hex.DecodeString(s.File)
	if err != nil {
		return fmt.Errorf("the kept bundle of %s: %w", h.TrustDomain, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	copy(h.file[:], file)
	h.bundle, h.highest, h.since, h.fetched, h.saved = b, s.Highest, s.Since, s.Fetched, s.Fetched
	k.tell()
	return nil
}

// Forget removes what is kept of domains that are not in force, so that a relationship which
// is taken up again begins anew (Federation §6.3).
func (k *Keeper) Forget() {
	k.storing.Lock()
	defer k.storing.Unlock()
	if err := k.forget(); err != nil {
		k.o.Logger.Error("forgetting the bundles of other trust domains", "err", err)
	}
}

func (k *Keeper) forget() error {
	names, err := k.index()
	if err != nil {
		return err
	}
	k.mu.Lock()
	now := k.domains
	k.mu.Unlock()
	var stay []string
	for _, name := range names {
		if slices.ContainsFunc(now, func(h *held) bool { return h.TrustDomain.Name() == name }) {
			stay = append(stay, name)
		} else if err := k.o.Store.Remove(fileOf(name)); err != nil {
			return err
		}
	}
	if len(stay) == len(names) {
		return nil
	}
	return k.saveIndex(stay)
}
