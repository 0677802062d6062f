// Package door is the process that makes calls for agents, which never hold what the
// calls are made with.
//
// It is a reverse proxy behind a Unix socket that parses what agents and upstreams send,
// and is trusted with little: it has no capability, no TPM and no file of the daemon's. Of
// each request it reads the target, the places that could carry a credential and, where
// rules look at it, the content; asks the daemon (package link); and makes the call with
// what the answer brings:
//
//	parse → route → slots → content → ask → dial → inject → filter → outcome
//
// A request is refused for what its parts could mean to somebody else, never repaired: a
// second reading of the path, a credential of the caller's own, a handle outside of its
// place. The credential is put in last, after every header of the caller's that could take
// it out again, and over a connection whose address and certificate have been checked.
// What comes back is searched for it.
//
// Out of reach: an upstream that wants to leak. What it is told in a request that the rules
// allow, it may hand to anybody; the filter knows the encodings of an echo and no others.
package door
