// Package view is what administrators see of the daemon, and say to it, as JSON
// on the admin socket. An older command has to understand a newer daemon and the
// other way round: names stay, and what is new may be missing.
//
// The views are plain. Nothing of the daemon is imported here, and what
// reads them links none of it.
package view
