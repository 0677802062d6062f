// Package sealed keeps secrets that cannot be leased, sealed to this machine: the ones that
// a vendor issues once, because it offers nothing better.
//
// A value is encrypted with AES-256-GCM under its own key, which only this machine's TPM
// releases, bound to its name and to its revision in the list of secrets. The list is sealed
// as well. A file that is swapped for another secret's, truncated, changed, or restored from
// before a rotation therefore does not open; on another machine, or after the TPM was
// cleared, nothing does. Each change is recorded before it is made.
//
// Out of reach: if the list and the files are restored together, they open as they did then.
// The attestation log names the revision of each value that is sealed and handed out, so its
// report reveals that. Root on the running machine can have whatever the daemon can.
package sealed

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vouchd/vouchd/secret"
)

// Bounds of what is kept.
const (
	MaxLen   = 1 << 20 // bytes of a secret
	MaxCount = 1000    // secrets of a host
	maxUsers = 32      // identities that are remembered for each; the latest stay
)

// How old a value is when its administrator is reminded to rotate it.
const (
	rotateAfter      = 90 * 24 * time.Hour
	rotateBroadAfter = 30 * 24 * time.Hour
)

// What a caller can tell apart. The message says what to do.
var (
	// ErrNone means that nothing is sealed under the name.
	ErrNone = errors.New("nothing is sealed under this name")
	// ErrExists means that another value is sealed under the name.
	ErrExists = errors.New("another value is sealed under this name")
	// ErrNotGiven means a secret that no administrator is given.
	ErrNotGiven = errors.New("is not given")
	// ErrValue means a name, a value or an option that cannot be.
	ErrValue = errors.New("cannot be sealed")
)

// Files keeps small files durably, as the daemon's state directory does. Remove
// returns nil for a missing file; Load returns an error that satisfies
// [fs.ErrNotExist].
type Files interface {
	Load(name string, version int) (data []byte, savedVersion int, err error)
	Save(name string, version int, data []byte) error
	Remove(name string) error
}

// A Sealer encrypts to this machine. A secret opens only under the label it was sealed
// under, and one from SealBound only in boot states that the root has approved.
type Sealer interface {
	Seal(ctx context.Context, label string, secret []byte) ([]byte, error)
	SealBound(ctx context.Context, label string, authority *ecdsa.PublicKey, secret []byte) ([]byte, error)
	Unseal(ctx context.Context, label string, blob []byte) ([]byte, error)
}

// A Secret is what is known of a secret without opening it.
type Secret struct {
	Name        string
	Revision    uint64    // no two values on this host have the same, whatever their names
	Len         int       // bytes
	Created     time.Time // when something was first sealed under the name
	Sealed      time.Time // when this value was
	RotateAfter time.Duration
	Broad       bool // who has it can do much
	Bound       bool // to boot states
	LastUse     time.Time
	Uses        uint64   // since it was created
	UsedBy      []string // SPIFFE IDs, those that used it last at most
}

// RotateBy is when the value is due to be replaced.
func (s Secret) RotateBy() time.Time { return s.Sealed.Add(s.RotateAfter) }

// Handle names this value in records.
func (s Secret) Handle() string { return fmt.Sprintf("%s@%d", s.Name, s.Revision) }

// Options say how a value is to be kept. Rotating keeps what is left zero.
type Options struct {
	RotateAfter time.Duration // 0: 90 days, or 30 for a broad one; 1 second to 10 years
	Broad       *bool
	Authority   *ecdsa.PublicKey // the root that approves the boot states it is bound to
	// Same makes it no error to seal the very value that is sealed already.
	Same bool
}

// A Record makes a change durable in the attestation log. The change is made
// only if it returns nil.
type Record func(Secret) error

// A Store is the secrets of this host. It is safe for concurrent use.
type Store struct {
	files  Files
	sealer Sealer
	now    func() time.Time
	broken error // why the list cannot be read; nothing is sealed or revealed then

	changing sync.Mutex // held while a value is changed
	saving   sync.Mutex // held while uses are written down

	mu    sync.Mutex // guards the fields below; never held while the TPM or the disk is waited for
	list  list
	uses  map[string]*use
	saved time.Time // when uses were last
}

// Open reads the list of secrets. One that cannot be read is not an empty one:
// the store then refuses everything, and [Store.Err] says why.
func Open(ctx context.Context, files Files, sealer Sealer) *Store {
	s := &Store{files: files, sealer: sealer, now: time.Now}
	if s.broken = s.loadList(ctx); s.broken == nil {
		s.broken = s.loadUses()
	}
	return s
}

// Err returns why nothing can be sealed or revealed, nil if all is well.
func (s *Store) Err() error { return s.broken }

// Close writes down what is not durable yet of who used what.
func (s *Store) Close() error { return s.saveUses() }

// List returns every secret by name.
func (s *Store) List() []Secret {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Secret, 0, len(s.list.Secrets))
	for name, k := range s.list.Secrets {
		all = append(all, s.describe(name, k))
	}
	slices.SortFunc(all, func(a, b Secret) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Get returns what is known of one secret. The error wraps [ErrNone] if there is
// none of the name.
func (s *Store) Get(name string) (Secret, error) {
	k, err := s.lookup(name)
	if err != nil {
		return Secret{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.describe(name, k), nil
}

func (s *Store) lookup(name string) (kept, error) {
	if s.broken != nil {
		return kept{}, s.broken
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if k, ok := s.list.Secrets[name]; ok {
		return k, nil
	}
	return kept{}, fmt.Errorf("secret %.80q: %w; to seal it: vouch secret seal %[1]s", name, ErrNone)
}

var secretName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// CheckName returns an error that wraps [ErrValue] unless something can be
// sealed under the name.
func CheckName(name string) error {
	if !secretName.MatchString(name) {
		return fmt.Errorf("secret %.80q: %w: use letters, digits, dots, dashes and underscores, at most 128", name, ErrValue)
	}
	return nil
}

func checkValue(name string, value secret.Bytes) error {
	switch n := value.Len(); {
	case n == 0:
		return fmt.Errorf("secret %s: %w: it is empty; did the command before the pipe fail?", name, ErrValue)
	case n > MaxLen:
		return fmt.Errorf("secret %s: %w: it has more than %d bytes", name, ErrValue, MaxLen)
	}
	return nil
}

func checkOptions(name string, o Options) error {
	if o.RotateAfter != 0 && (o.RotateAfter < time.Second || o.RotateAfter > 10*365*24*time.Hour) {
		return fmt.Errorf("secret %s: %w: a reminder after %v; want 1s to 10 years", name, ErrValue, o.RotateAfter)
	}
	if o.Authority == nil {
		return nil
	}
	if _, err := x509.MarshalPKIXPublicKey(o.Authority); err != nil {
		return fmt.Errorf("secret %s: %w: the root's key: %w", name, ErrValue, err)
	}
	return nil
}

// Seal keeps a value under a name that has none yet.
func (s *Store) Seal(ctx context.Context, name string, value secret.Bytes, o Options, record Record) (Secret, error) {
	if err := errors.Join(CheckName(name), checkValue(name, value), checkOptions(name, o)); err != nil {
		return Secret{}, err
	}
	s.changing.Lock()
	defer s.changing.Unlock()
	switch k, err := s.lookup(name); {
	case err == nil:
		return s.sameValue(ctx, name, k, value, o)
	case !errors.Is(err, ErrNone):
		return Secret{}, err
	}
	if len(s.List()) >= MaxCount {
		return Secret{}, fmt.Errorf("secret %s: %w: there are %d already; remove some", name, ErrValue, MaxCount)
	}
	now := s.now().UTC().Truncate(time.Second)
	return s.keep(ctx, name, kept{Created: now, Sealed: now, Len: value.Len()}.with(o), value, record)
}

// sameValue answers who seals what is there already.
func (s *Store) sameValue(ctx context.Context, name string, k kept, value secret.Bytes, o Options) (Secret, error) {
	if !o.Same {
		return Secret{}, fmt.Errorf("secret %s: %w; to replace it: vouch secret rotate %s", name, ErrExists, name)
	}
	there, err := s.open(ctx, name, k)
	if err != nil {
		return Secret{}, err
	}
	defer there.Wipe()
	if !there.Equal(value) {
		return Secret{}, fmt.Errorf("secret %s: %w; choose another name, or replace it: vouch secret rotate %s", name, ErrExists, name)
	}
	return s.Get(name)
}

// UndoPrefix begins the names of what undoes a change, such as a migration's. It is given
// back to administrators, and no credential may use it.
const UndoPrefix = "undo-"

// Undo opens what undoes a change. The error wraps [ErrNotGiven] for any other secret: those
// are used, and never given back.
func (s *Store) Undo(ctx context.Context, name string, record Record) (secret.Bytes, error) {
	if !strings.HasPrefix(name, UndoPrefix) {
		return secret.Bytes{}, fmt.Errorf("secret %.80q: %w back: only what begins with %s is", name, ErrNotGiven, UndoPrefix)
	}
	s.changing.Lock()
	defer s.changing.Unlock()
	k, err := s.lookup(name)
	if err != nil {
		return secret.Bytes{}, err
	}
	there, err := s.Get(name)
	if err != nil {
		return secret.Bytes{}, err
	}
	if err := record(there); err != nil {
		return secret.Bytes{}, fmt.Errorf("recording that secret %s is given back: %w", name, err)
	}
	return s.open(ctx, name, k)
}

// Rotate keeps a value in the place of the last one, which is gone then.
func (s *Store) Rotate(ctx context.Context, name string, value secret.Bytes, o Options, record Record) (Secret, error) {
	if err := errors.Join(CheckName(name), checkValue(name, value), checkOptions(name, o)); err != nil {
		return Secret{}, err
	}
	s.changing.Lock()
	defer s.changing.Unlock()
	old, err := s.lookup(name)
	if err != nil {
		return Secret{}, err
	}
	next := old.with(o)
	next.Sealed, next.Len = s.now().UTC().Truncate(time.Second), value.Len()
	rotated, err := s.keep(ctx, name, next, value, record)
	if err != nil {
		return Secret{}, err
	}
	return rotated, s.files.Remove(fileOf(name, old.Revision))
}

// Remove forgets a secret.
func (s *Store) Remove(ctx context.Context, name string, record Record) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	there, err := s.Get(name)
	if err != nil {
		return err
	}
	if err := record(there); err != nil {
		return fmt.Errorf("recording that secret %s is removed: %w", name, err)
	}
	if err := s.saveList(ctx, s.list.without(name)); err != nil {
		return err
	}
	return errors.Join(s.forgetUses(name), s.files.Remove(fileOf(name, there.Revision)))
}
