// Package database is what a definition's database block says: where connections with the
// credential go, how they are secured, and which statements may be sent over them.
//
// It is values and pure functions, known to both sides of the proxy, as package policy is
// for calls over HTTP. The process that speaks the database's protocol judges each
// statement by its command: [Definition.Judge] for SQL, [Definition.JudgeCommand] for Redis.
//
// Out of reach: what a statement does inside the server. A SELECT calls functions, and those
// do what the login may do. The login's own rights are the boundary; judging commands keeps
// an agent from what it was never meant to try.
package database
