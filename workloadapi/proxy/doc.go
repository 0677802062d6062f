// Package proxy is the daemon's side of calls that are made in a workload's stead: it
// decides each one, records it, and only then gives what it is made with to the process
// that makes it (package door, which is another process of vouchd's).
//
// It is a front on the gate. A connection is attributed by its descriptor, which the
// kernel tells the peer of, and every request over it is decided anew: who is there, what
// its entries grant, whether the definition's rules allow this request. A connection of
// HTTP/2 is challenged by a PING. One of HTTP/1.1 cannot be, so that an entry which
// narrows by a program counts there only for whoever shows a handle: that was given, over
// the agent socket and after a challenge, to the process that shows it or to one that it
// descends from.
//
// What the process is given is the credential for this one request and its response.
package proxy
