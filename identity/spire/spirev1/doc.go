// Package spirev1 is the calls of a SPIRE server that an agent makes: generated code of the
// messages and services as they are on the wire, without those that an agent has no use for.
package spirev1

//go:generate ./generate
