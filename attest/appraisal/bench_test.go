package appraisal_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

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
	if r := appraisal.Appraise(e, p, given); !r.Passed {
		b.Fatal(r)
	}
	b.SetBytes(int64(len(e)))
	for b.Loop() {
		appraisal.Appraise(e, p, given)
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
