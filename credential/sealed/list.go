package sealed

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/secret"
)

// Files in the state directory: the list, sealed; each value, sealed under its
// name and revision; and who used what, which is no secret.
const (
	listFile   = "secrets"
	usesFile   = "secret-uses"
	valueStem  = "secret-"
	fileFormat = 1
)

func fileOf(name string, revision uint64) string {
	return fmt.Sprintf("%s%s@%d", valueStem, name, revision)
}

func labelOf(name string, revision uint64) string { return fmt.Sprintf("secret %s %d", name, revision) }

// A list says which value is the one of each name. It is replaced whole.
type list struct {
	Revision uint64          `json:"revision"` // the highest ever given out
	Secrets  map[string]kept `json:"secrets"`
}

func (l list) without(name string) list {
	next := list{l.Revision, maps.Clone(l.Secrets)}
	delete(next.Secrets, name)
	return next
}

// kept is a secret in the list.
type kept struct {
	Revision    uint64        `json:"revision"`
	Len         int           `json:"len"`
	Created     time.Time     `json:"created"`
	Sealed      time.Time     `json:"sealed"`
	RotateAfter time.Duration `json:"rotate_after"` // 0: the default
	Broad       bool          `json:"broad,omitempty"`
	Authority   []byte        `json:"authority,omitempty"` // DER SubjectPublicKeyInfo
}

// with returns it with what the options say.
func (k kept) with(o Options) kept {
	if o.RotateAfter != 0 {
		k.RotateAfter = o.RotateAfter
	}
	if o.Broad != nil {
		k.Broad = *o.Broad
	}
	if o.Authority != nil {
		k.Authority, _ = x509.MarshalPKIXPublicKey(o.Authority) // which checkOptions has tried
	}
	return k
}

func (k kept) authority() (*ecdsa.PublicKey, error) {
	key, err := x509.ParsePKIXPublicKey(k.Authority)
	if err != nil {
		return nil, err
	}
	if ec, ok := key.(*ecdsa.PublicKey); ok {
		return ec, nil
	}
	return nil, fmt.Errorf("the root of boot states has a %T, want ECDSA", key)
}

// keep makes a value durable under the next revision, and then the list that
// names it. A crash in between leaves a file that nothing names. The caller
// holds changing, under which the list stays as it is.
func (s *Store) keep(ctx context.Context, name string, k kept, value secret.Bytes, record Record) (Secret, error) {
	k.Revision = s.list.Revision + 1
	blob, err := s.seal(ctx, labelOf(name, k.Revision), k, value)
	if err != nil {
		return Secret{}, fmt.Errorf("secret %s: %w", name, err)
	}
	s.mu.Lock()
	described := s.describe(name, k)
	s.mu.Unlock()
	if err := record(described); err != nil {
		return Secret{}, fmt.Errorf("recording secret %s: %w", name, err)
	}
	if err := s.files.Save(fileOf(name, k.Revision), fileFormat, blob); err != nil {
		return Secret{}, fmt.Errorf("secret %s: %w", name, err)
	}
	next := list{k.Revision, maps.Clone(s.list.Secrets)}
	next.Secrets[name] = k
	return described, s.saveList(ctx, next)
}

func (s *Store) seal(ctx context.Context, label string, k kept, value secret.Bytes) ([]byte, error) {
	if k.Authority == nil {
		return s.sealer.Seal(ctx, label, value.Reveal())
	}
	authority, err := k.authority()
	if err != nil {
		return nil, err
	}
	return s.sealer.SealBound(ctx, label, authority, value.Reveal())
}

func (s *Store) saveList(ctx context.Context, next list) error {
	data, err := json.Marshal(next)
	if err != nil {
		return err
	}
	blob, err := s.sealer.Seal(ctx, listFile, data)
	if err == nil {
		err = s.files.Save(listFile, fileFormat, blob)
	}
	if err != nil {
		return fmt.Errorf("saving the list of secrets: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = next
	return nil
}

func (s *Store) loadList(ctx context.Context) error {
	s.list = list{Secrets: make(map[string]kept)}
	blob, _, err := s.files.Load(listFile, fileFormat)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var data []byte
	if err == nil {
		data, err = s.sealer.Unseal(ctx, listFile, blob)
	}
	if err == nil {
		err = json.Unmarshal(data, &s.list)
	}
	if err != nil {
		return fmt.Errorf("reading the list of secrets: %w; restore the file %s, or move it away and seal the secrets anew", err, listFile)
	}
	return nil
}

// Reveal opens a secret for an identity, whose use is noted.
func (s *Store) Reveal(ctx context.Context, name string, by spiffeid.ID) (secret.Bytes, Secret, error) {
	k, err := s.lookup(name)
	if err != nil {
		return secret.Bytes{}, Secret{}, err
	}
	value, err := s.open(ctx, name, k)
	if now, lookupErr := s.lookup(name); err != nil && lookupErr == nil && now.Revision != k.Revision {
		k = now // it was rotated in the meantime, and its file is gone
		value, err = s.open(ctx, name, k)
	}
	if err != nil {
		return secret.Bytes{}, Secret{}, err
	}
	s.note(name, by)
	s.mu.Lock()
	defer s.mu.Unlock()
	return value, s.describe(name, k), nil
}

// open opens the value that the list names, and no other.
func (s *Store) open(ctx context.Context, name string, k kept) (secret.Bytes, error) {
	blob, _, err := s.files.Load(fileOf(name, k.Revision), fileFormat)
	var value []byte
	if err == nil {
		value, err = s.sealer.Unseal(ctx, labelOf(name, k.Revision), blob)
	}
	if err == nil && len(value) != k.Len {
		clear(value)
		err = fmt.Errorf("it has another length than the list says")
	}
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("opening secret %s, sealed %s: %w; if it is lost, seal it again: vouch secret rotate %[1]s", name, k.Sealed.Format(time.DateOnly), err)
	}
	return secret.Of(value), nil
}

// describe returns what is known of a secret. The caller holds mu.
func (s *Store) describe(name string, k kept) Secret {
	d := Secret{
		Name: name, Revision: k.Revision, Len: k.Len, Created: k.Created, Sealed: k.Sealed,
		RotateAfter: k.RotateAfter, Broad: k.Broad, Bound: k.Authority != nil,
	}
	if d.RotateAfter == 0 {
		d.RotateAfter = rotateAfter
		if k.Broad {
			d.RotateAfter = rotateBroadAfter
		}
	}
	if u := s.uses[name]; u != nil {
		d.LastUse, d.Uses = u.Last, u.Count
		d.UsedBy = slices.Sorted(maps.Keys(u.By))
	}
	return d
}
