// Package pluginv1 is what SPIRE's server asks of a plug-in: generated code of the messages
// and services as they are on the wire, without what this plug-in has no use for.
package pluginv1

//go:generate ./generate
