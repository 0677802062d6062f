// Package wire is a Unix connection whose every byte is known to come from one pinned
// process, and over which that process can be asked for a sign of life.
//
// The kernel says who connected, but the program may be swapped under a connection: a
// process connects, forks, and execs a program that is entitled to more, while its
// child keeps the socket. Every fact about the process that connected is then one
// about the trusted program. Two checks defeat this. Each message's sender must be
// the pinned process (SCM_CREDENTIALS, which the kernel fills in), so the child cannot
// speak. And what was sent before the exec, or is still in the socket's buffer, is
// not enough either: after attestation the daemon sends an HTTP/2 PING with 8
// unpredictable bytes, and replies only once the pinned process has sent them back
// ([Conn.Challenge]). Every HTTP/2 client answers PINGs by itself.
//
// A trusted program that writes its input to a descriptor it inherited can be made to
// answer. A process with CAP_SYS_ADMIN over a PID namespace can claim to be any
// process in it, which is why attest/process refuses peers in namespaces that the host
// does not own.
package wire
