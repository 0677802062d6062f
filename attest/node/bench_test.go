package node

import (
	"bytes"
	"crypto"
	"os"
	"path/filepath"
	"testing"

	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

func BenchmarkLoad(b *testing.B) {
	tpm, _ := open(b)
	dir := store(b)
	load(b, tpm, dir)
	for b.Loop() {
		load(b, tpm, dir)
	}
}

func BenchmarkSign(b *testing.B) {
	tpm, _ := open(b)
	s := load(b, tpm, store(b)).Signer()
	digest := someBytes(32)
	for b.Loop() {
		if _, err := s.Sign(nil, digest, crypto.SHA256); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnseal(b *testing.B) {
	tpm, _ := open(b)
	n := load(b, tpm, store(b))
	sealed, err := n.Seal(b.Context(), "label", []byte("secret"))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := n.Unseal(b.Context(), "label", sealed); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkQuote(b *testing.B) {
	tpm, _ := open(b)
	n := load(b, tpm, store(b))
	for b.Loop() {
		if _, err := n.Quote(b.Context(), [32]byte{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAnchor(b *testing.B) {
	tpm, _ := open(b)
	n := load(b, tpm, store(b))
	for b.Loop() {
		if _, err := n.Anchor(b.Context(), [32]byte{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEvidence(b *testing.B) {
	m := withLongLog(b)
	nonce := someBytes(32)
	for b.Loop() {
		if _, err := m.Evidence(b.Context(), nonce, m.from); err != nil {
			b.Fatal(err)
		}
	}
}

// Appraise judges evidence with an event log of 200 KB by all rules; it uses
// no TPM.
func BenchmarkAppraise(b *testing.B) {
	m := withLongLog(b)
	e, given := m.evidence(b)
	p := learned(b, e)
	if r := Appraise(e, p, given); !r.Passed {
		b.Fatal(r)
	}
	b.SetBytes(int64(len(e)))
	for b.Loop() {
		Appraise(e, p, given)
	}
}

// withLongLog boots a machine whose firmware measured much, as servers with
// many option ROMs do: 200 KB of log.
func withLongLog(b *testing.B) *machine {
	b.Helper()
	m := booted(b, "uki-secureboot", tpmtest.Start(b))
	log := readFile(b, m.from.EventLog)
	header, first := 32+int(log[28]), len(log) // its first event says how to read the others
	for len(log) < 200_000 {
		log = append(log, event(5, 0x80000006, bytes.Repeat([]byte{byte(len(log))}, 300))...)
	}
	m.play(b, append(bytes.Clone(log[:header]), log[first:]...))
	m.from.EventLog = filepath.Join(b.TempDir(), "log")
	if err := os.WriteFile(m.from.EventLog, log, 0o600); err != nil {
		b.Fatal(err)
	}
	return m
}
