// Package databases serves connections of agents to databases, in the process that makes
// calls (package door): the agent has no password, and the database sees one who has.
//
// Each definition has a socket, which the daemon makes and this process accepts on. Of a
// connection the daemon decides once, by its descriptor (package link), and gives what to
// log in with: a credential leased for this connection alone. The process logs in itself,
// and then passes messages on both ways, as they come and in constant memory, judging
// statements where the definition says so. The connection ends with its lease.
//
// A statement that is not allowed is not sent. In its place goes one that fails, so that the
// database itself keeps what follows in order, and its error is told as the refusal. What
// passes is counted by command, and never kept.
package databases
