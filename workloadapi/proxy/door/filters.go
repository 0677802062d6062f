package door

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"

	"github.com/vouchd/vouchd/redact"
	"github.com/vouchd/vouchd/secret"
)

// filters keeps what finds a credential in a response, which takes a while to make, for
// as long as it is in use.
type filters struct {
	mu sync.Mutex // guards the field below
	of map[[32]byte]*filter
}

type filter struct {
	secrets *redact.Secrets
	used    time.Time
}

const (
	maxFilters = 256
	filterIdle = time.Minute
)

// get returns what finds the values.
func (f *filters) get(values []secret.Bytes) (*redact.Secrets, error) {
	h := sha256.New()
	for _, v := range values {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(v.Len())))
		h.Write(v.Reveal())
	}
	key, now := [32]byte(h.Sum(nil)), time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if k := f.of[key]; k != nil {
		k.used = now
		return k.secrets, nil
	}
	s, err := redact.Compile(values...)
	if err != nil {
		return nil, err
	}
	for other, k := range f.of {
		if now.Sub(k.used) > filterIdle {
			delete(f.of, other)
		}
	}
	if f.of == nil || len(f.of) >= maxFilters {
		f.of = make(map[[32]byte]*filter)
	}
	f.of[key] = &filter{s, now}
	return s, nil
}
