// Package policy is what a definition's proxy block says: where calls with the
// credential go, how they carry it, and which of them are allowed.
//
// It is values and pure functions, known to both sides of the proxy. The process
// that parses requests reads a [Target] and the [Request] that rules look at; the
// daemon, which decides, applies the [Rule]s to it. What the rules see of a request
// is what is sent: [ParseTarget] refuses whatever a server might read differently,
// and changes nothing.
//
// A preset fills a block for a vendor's API, as its documents had it at the preset's
// date. Out of reach: an upstream that gives one path two meanings.
package policy
