// Package node attests the machine through its TPM 2.0.
//
// Its attester half ([Open], [Load] and the methods of [Node]) keeps the
// node's keys in the TPM and makes what proves them: statements, quotes and
// anchors, which the TPM signs with the attestation key (AK). Its verifier
// half ([VerifyStatement] and the methods of [Verified]) checks them with
// nothing but their bytes: no TPM, no network, on any machine.
//
// The AK is restricted: the TPM signs with it only structures that it made
// itself. So one signature by a key of exactly the right attributes is what
// everything here comes down to, and nothing is read from a structure before
// that signature held.
//
// Two things stay out of reach. A TPM vouches for the machine it is soldered
// to and not for the way to it: evidence relayed from another machine's TPM
// (the cuckoo attack) looks like this machine's own, and only an inventory of
// endorsement keys tells them apart. And who controls the host's kernel can
// use, though not take away, every key in the TPM.
package node
