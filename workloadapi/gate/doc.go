// Package gate decides who gets something from the daemon.
//
// Whatever a process asks for, and over whichever socket, the way is the same:
//
//	accept → peer → selectors → entries → presence → record | refuse
//
// A front (an API of the daemon) accepts a connection and says what is asked
// for. [Gate.Admit] attests the process at its other end, finds its entries and
// challenges it; the [Caller] that it returns is nobody yet. [Answer] takes what
// the front makes for the caller and returns it once the caller has proven that
// it is there and the records are durable. [Obtain] is for what takes a while
// to get: it attests the caller again before each delivery. Anything else is
// refused, in [Caller.Refuse], which records why. The lease engine records what
// it grants itself.
//
// The kernel is the only witness. Nothing a caller sends identifies it, and
// nothing is remembered of a caller from one answer to the next but which
// process it is. What the facts about a process mean is in [Rules], and may
// change at any time: they are looked at once more after the proof.
//
// What callers ask for, and in which protocol, is up to the fronts.
package gate
