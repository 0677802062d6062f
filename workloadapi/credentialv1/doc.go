// Package credentialv1 is the generated code of credential.proto, the API by
// which a process leases credentials from the daemon. A client in any language
// is generated from that file; package workloadapi has one in Go that finds the
// socket and keeps values out of what prints.
package credentialv1

//go:generate ./generate
