package proxy

import (
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// One record may stand for several calls of one process by one rule, where the definition
// says so (record: window): for up to a second, and a hundred calls. It is durable before
// the first of them. What came of them says how many there were.
const (
	windowFor  = time.Second
	windowUses = 100
)

// windows are those that are open. The methods are safe for concurrent use.
type windows struct {
	mu   sync.Mutex // guards the field below
	open map[windowKey]*window
}

type windowKey struct {
	identity   spiffeid.ID
	credential string
	rule       string
	pid        int
	start      uint64
}

// A window is opened by one call, whose request ID the others share.
type window struct {
	mu      sync.Mutex // held while it is opened; guards the fields below
	request string     // ID of the call that opened it; empty before
	until   time.Time
	uses    int
}

// maxWindows bounds what is remembered.
const maxWindows = 4096

// enter makes a call one of its window's, and returns the ID of the one that opened
// it. If there is none, open makes a record durable, and this is the one.
func (w *windows) enter(key windowKey, request string, open func() error) (string, error) {
	w.mu.Lock()
	if w.open == nil || len(w.open) >= maxWindows {
		w.open = make(map[windowKey]*window)
	}
	of := w.open[key]
	if of == nil {
		of = new(window)
		w.open[key] = of
	}
	w.mu.Unlock()
	of.mu.Lock()
	defer of.mu.Unlock()
	if of.request != "" && of.uses < windowUses && time.Now().Before(of.until) {
		of.uses++
		return of.request, nil
	}
	of.request = ""
	if err := open(); err != nil {
		return "", err
	}
	of.request, of.until, of.uses = request, time.Now().Add(windowFor), 1
	return request, nil
}
