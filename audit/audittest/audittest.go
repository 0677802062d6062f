// Package audittest has what tests of the log's writer and reader share: a TPM that
// only counts and signs, the verifier of what it made, and a record to append.
package audittest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/vouchd/vouchd/audit"
)

// A TPM signs as a real one would: a counter that only goes up, and the
// digest. That a real TPM's statements are read rightly is attest/node's to
// test; what follows from them is tested here.
type TPM struct {
	Key ed25519.PrivateKey // the AK; change it to have another TPM

	mu      sync.Mutex // held by the methods; a test sets the fields between calls
	Counter uint64
	Resets  uint32
	Fail    error // of whatever is asked
}

// A OneStepTPM hides that a TPM can certify and count apart.
type OneStepTPM struct{ audit.Anchorer }

// NewTPM returns a TPM whose counter is at 1.
func NewTPM() *TPM {
	return &TPM{Counter: 1, Key: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))}
}

// Anchor implements [audit.Anchorer].
func (t *TPM) Anchor(ctx context.Context, digest [32]byte) ([]byte, error) {
	t.mu.Lock()
	t.Counter++
	t.mu.Unlock()
	return t.Certify(ctx, digest)
}

// Certify implements [audit.CountingAnchorer].
func (t *TPM) Certify(_ context.Context, digest [32]byte) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.Fail != nil {
		return nil, t.Fail
	}
	b := binary.BigEndian.AppendUint64(nil, t.Counter)
	b = binary.BigEndian.AppendUint32(b, t.Resets)
	return append(b, ed25519.Sign(t.Key, append(bytes.Clone(b), digest[:]...))...), nil
}

// Count implements [audit.CountingAnchorer].
func (t *TPM) Count(context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.Fail != nil {
		return t.Fail
	}
	t.Counter++
	return nil
}

// Statement says which log key the TPM vouches for.
func (t *TPM) Statement(logKey ed25519.PublicKey) []byte {
	pub := t.Key.Public().(ed25519.PublicKey)
	return slices.Concat(pub, ed25519.Sign(t.Key, append([]byte("log key "), logKey...)))
}

// A Verifier reads what a [TPM] made.
type Verifier struct{ ak ed25519.PublicKey }

// Statement implements [audit.TPMVerifier].
func (v *Verifier) Statement(s []byte, logKey ed25519.PublicKey) (audit.NodeFacts, error) {
	if len(s) != 96 || !ed25519.Verify(s[:32], append([]byte("log key "), logKey...), s[32:]) {
		return audit.NodeFacts{}, errors.New("the statement is not signed for the log's key")
	}
	v.ak = s[:32]
	return audit.NodeFacts{EKSHA256: fmt.Sprintf("%x", sha256.Sum256(s[:32])), AKName: fmt.Sprintf("000b%x", s[:32])}, nil
}

// Anchor implements [audit.TPMVerifier].
func (v *Verifier) Anchor(a []byte, digest [32]byte) (audit.AnchorFacts, error) {
	if len(a) != 76 || !ed25519.Verify(v.ak, append(bytes.Clone(a[:12]), digest[:]...), a[12:]) {
		return audit.AnchorFacts{}, errors.New("the anchor is not signed by the AK over these records")
	}
	return audit.AnchorFacts{Counter: binary.BigEndian.Uint64(a), Resets: binary.BigEndian.Uint32(a[8:]), Index: "01c0"}, nil
}

// LogKey is a log's key.
var LogKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{42}, 32))

// Attested returns a record of a process that was attested.
func Attested(pid int) audit.Record {
	return audit.Record{
		Event: audit.EventWorkload, Outcome: audit.Success, RequestID: fmt.Sprintf("r-%d", pid),
		SPIFFEID: "spiffe://example.org/agent/research", Duration: 420 * time.Microsecond,
		Workload: &audit.Workload{
			PID: pid, StartTime: 12345, UID: 1000, GID: 1000, Path: "/usr/bin/research-agent",
			SHA256: "5f2c9fd1d95bd9a3b1f4a3b0fbe42a1d3b7e9d5b0b3b5d2a6a4f1c0e9d8c7b6a", Device: 65024, Inode: 271828,
			Cgroup: "/system.slice/research-agent.service", Unit: "research-agent.service",
			Selectors: []string{"unix:uid:1000", "unix:gid:1000", "systemd:id:research-agent.service", "unix:path:/usr/bin/research-agent"},
			Entry:     "entries.d/research.yaml:2",
		},
	}
}
