package daemontest

import (
	"bufio"
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"
)

// Lines collects output and lets a test wait for some of it.
type Lines struct {
	mu     sync.Mutex // guards text and grown
	text   bytes.Buffer
	grown  chan struct{}
	closed chan struct{}
}

// NewLines returns an empty collection.
func NewLines() *Lines { return &Lines{grown: make(chan struct{}), closed: make(chan struct{})} }

// Write implements [io.Writer].
func (l *Lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.grown)
	l.grown = make(chan struct{})
	return l.text.Write(p)
}

// Close says that nothing more comes.
func (l *Lines) Close() error { close(l.closed); return nil }

// Closed returns a channel that is closed once nothing more comes.
func (l *Lines) Closed() <-chan struct{} { return l.closed }

// String returns all of it.
func (l *Lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Wait returns the first line that holds text.
func (l *Lines) Wait(t testing.TB, text string) string {
	t.Helper()
	late := time.After(patience)
	for {
		l.mu.Lock()
		grown := l.grown
		for scan := bufio.NewScanner(strings.NewReader(l.text.String())); scan.Scan(); {
			if strings.Contains(scan.Text(), text) {
				l.mu.Unlock()
				return scan.Text()
			}
		}
		l.mu.Unlock()
		select {
		case <-grown:
		case <-l.closed:
			if !strings.Contains(l.String(), text) {
				t.Fatalf("the daemon ended without %q; it said:\n%s", text, l)
			}
		case <-late:
			t.Fatalf("the daemon does not say %q; it said:\n%s", text, l)
		}
	}
}

// Eventually waits for a condition that has no event.
func Eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for !holds() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}
