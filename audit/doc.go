// Package audit is the attestation log: every decision as a durable record
// that a stranger can verify.
package audit
