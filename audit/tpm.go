package audit

import (
	"context"
	"crypto"
	"crypto/ed25519"
)

// An Anchorer binds a digest to the TPM: it increments a monotonic NV counter
// and returns the TPM's signed word on the counter's value with the digest as
// qualifying data, in an encoding that only a [TPMVerifier] reads.
//
// A daemon that is killed after the increment and before the record of it leaves
// a gap, which can't be told from a removed anchor, and which the reader therefore
// reports as a failure. A [CountingAnchorer] leaves none.
type Anchorer interface {
	Anchor(ctx context.Context, digest [32]byte) ([]byte, error)
}

// A CountingAnchorer is an [Anchorer] that can do in two steps what Anchor does
// in one. The log then has the counter's present value certified, makes that
// durable, and only then has it counted, so that whenever the daemon is killed,
// every value that the counter leaves behind is in the log.
type CountingAnchorer interface {
	Anchorer
	// Certify is Anchor without the increment.
	Certify(ctx context.Context, digest [32]byte) ([]byte, error)
	// Count increments the counter. After an error it may or may not have been
	// incremented; the log does not try again, but goes on with the value that
	// Certify finds.
	Count(ctx context.Context) error
}

// A NewestAnchorer is an [Anchorer] that knows which anchor was its last. The log
// asks it when it is opened: a copy of an older state of the log, put in its place,
// has an older anchor.
type NewestAnchorer interface {
	Anchorer
	// Newest returns an error that says so unless anchor, over digest, is the last
	// that was made; nil stands for none since the log's key was made.
	Newest(ctx context.Context, anchor []byte, digest [32]byte) error
}

// A TPMVerifier checks what only the TPM could have signed. It needs no TPM.
type TPMVerifier interface {
	// Statement checks what proves the machine's keys: the EK, the AK, the node
	// key certified by the AK, and logKey bound by a quote.
	Statement(statement []byte, logKey ed25519.PublicKey) (NodeFacts, error)
	// Anchor checks an anchor over digest, made by the machine whose statement
	// was checked last.
	Anchor(anchor []byte, digest [32]byte) (AnchorFacts, error)
}

// A QuoteVerifier is a [TPMVerifier] that also checks the quotes taken when
// authority keys were made ([Key].Quote): quote is of the machine whose
// statement was checked last, and digest is the SHA-256 of the public key.
type QuoteVerifier interface {
	Quote(quote []byte, digest [32]byte) error
}

// NodeFacts are what a statement proves.
type NodeFacts struct {
	EKSHA256 string           // of the EK's public key, hexadecimal
	AKName   string           // TPM name of the AK, hexadecimal
	NodeKey  crypto.PublicKey // signs issuing CAs; nil: an organisation's root does
	Born     uint64           // value of the counter when the log's key was made; 0 where that is not said
}

// AnchorFacts are what an anchor proves.
type AnchorFacts struct {
	Counter uint64 // of the NV index, one more with each anchor
	Resets  uint32 // the TPM's reset count: one more each boot
	Index   string // name of the NV index, hexadecimal
}
