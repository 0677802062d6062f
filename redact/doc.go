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
// and whether one of them is in no form of any secret, such as the line feed that ends an
// event. Nothing depends on how much of a secret has matched until all of it has.
//
// Out of reach: an encoding that is not listed, and so an upstream that wants to leak.
package redact
