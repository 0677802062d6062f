// Package process attests the local process at the other end of a Unix socket.
//
// The kernel is the only witness. [PeerOf] pins the process that connected by
// a pidfd; [Attester.Attest] reads what the kernel says about it through one
// handle of its /proc directory, reads again what an exec or a change of user
// would have changed, and at last asks the pidfd whether the process still
// lives. A live pidfd means that its PID cannot have been reused, so every fact
// read in between was about the peer and nobody else.
//
// Two things stay out of reach. A process may hand its connection to another
// one, or be swapped by an exec for a program that it chose: the transport in
// workloadapi therefore asks the kernel who sent each message, and asks the
// peer for a sign of life after it was attested. And whoever may trace a
// process (ptrace, by default any process of the same user) is that process
// for every purpose here. Callers attest on every request and never keep
// selectors for a connection.
package process
