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
	mu   sync.Mutex // guards the fields below
	of   map[[32]byte]*filter
	size int // bytes that those in of take, as far as they are made
}

type filter struct {
	made func() (*redact.Secrets, error)
	used time.Time
	size int // 0 until it is made
}

const (
	maxFilters     = 256
	maxFiltersSize = 32 << 20 // bytes
	filterIdle     = time.Minute
)

// get returns what finds the values. It is made once for all who ask meanwhile, and
// nobody waits for that of others.
func (f *filters) get(values []secret.Bytes) (*redact.Secrets, error) {
	h := sha256.New()
	for _, v := range values {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(v.Len())))
		h.Write(v.Reveal())
	}
	key := [32]byte(h.Sum(nil))
	k := f.filter(key, values)
	s, err := k.made()
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if k.size == 0 && f.of[key] == k {
		k.size = s.Size()
		f.size += k.size
	}
	if f.size > maxFiltersSize {
		f.of, f.size = nil, 0
	}
	return s, nil
}

func (f *filters) filter(key [32]byte, values []secret.Bytes) *filter {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if k := f.of[key]; k != nil {
		k.used = now
		return k
	}
	for other, k := range f.of {
		if now.Sub(k.used) > filterIdle {
			f.size -= k.size
			delete(f.of, other)
		}
	}
	if f.of == nil || len(f.of) >= maxFilters {
		f.of, f.size = make(map[[32]byte]*filter), 0
	}
	k := &filter{made: sync.OnceValues(func() (*redact.Secrets, error) { return redact.Compile(values...) }), used: now}
	f.of[key] = k
	return k
}
