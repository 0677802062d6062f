// Package spire is the agent of a SPIRE server, without the attestation of processes: it
// proves to the server which host this is, keeps in step with its bundles and entries, has
// it sign SVIDs, and goes on without it for as long as those are valid.
//
// What the server says is verified before it is used: that it is the trust domain's, that
// what it signed is for the identity and the key that were asked for, and that the bundle in
// force verifies it. Everything is recorded before it takes effect, and kept sealed to this
// machine for a start without the server.
//
// Offline nothing widens: an entry that was seen removed stays removed, an SVID is served to
// its own end and no longer, and once the entries are older than [Options.MaxStale], nothing
// is served at all.
package spire
