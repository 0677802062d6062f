// Package gate decides who gets something from the daemon.
package gate
