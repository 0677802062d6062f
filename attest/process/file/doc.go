// Package file says what can be relied on of a file: which it is, what it holds,
// who can have written it, and whether the host itself decides what its file system
// shows. Everything about a file is untrusted until one of these has been asked.
package file
