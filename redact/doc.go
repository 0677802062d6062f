// Package redact takes secrets out of a stream that passes by.
//
// A secret is looked for as it is and in the forms in which programs repeat what they were
// sent: percent-encoded, escaped for JSON, a script or HTML, any of its bytes or all; in
// hexadecimal; in base64 and base64url wherever it begins in what was encoded, as in basic
// authentication. Each full occurrence is replaced.
//
// A filter can leak what it hides. If it held data back while that might still become the
// secret, whoever can have text repeated would learn the secret one byte at a time from
// what comes late. So when a byte passes depends on two things only: how many follow it,
// and whether one of them is a control character, such as the line feed that ends an
// event, that is in no secret. Nothing depends on how much of a secret has matched until
// all of it has: neither what passes and in which pieces, nor the work for a byte, which is
// one step of an automaton that was made whole before.
//
// Out of reach: an encoding that is not listed, encodings inside each other other than JSON
// in JSON and base64 in the rest, base64 that is broken into lines, and so an upstream that
// wants to leak. Of base64, the characters at either end that other bytes share stay.
package redact
