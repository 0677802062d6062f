package node

import (
	"crypto"
	"testing"
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
