//go:build ui

package ui

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"
)

// A browser is a headless Chromium, which is told what to do over a pipe
// (https://chromedevtools.github.io/devtools-protocol).
type browser struct {
	t       *testing.T
	to      io.Writer
	session string
	events  chan struct{} // one is there, or the browser has ended

	mu      sync.Mutex // guards the fields below
	sent    int
	answers map[int]chan message
	seen    []message // events
}

// A message is one from the browser.
type message struct {
	ID     int             `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	Result json.RawMessage `json:"result"`
	Error  *struct {
		Message string `json:"message"`
	} `json:"error"`
}

const patience = 30 * time.Second

// newBrowser starts one with an empty page.
func newBrowser(t *testing.T) *browser {
	t.Helper()
	in, to, err := os.Pipe()
	must(t, err)
	from, out, err := os.Pipe()
	must(t, err)
	profile, err := os.MkdirTemp("", "vouch-ui-chromium")
	must(t, err)
	cmd := exec.Command("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-background-networking",
		"--disable-dev-shm-usage", "--disable-component-update", "--remote-debugging-pipe", "--user-data-dir="+profile)
	cmd.ExtraFiles = []*os.File{in, out} // 3 and 4
	must(t, cmd.Start())
	in.Close()
	out.Close()
	b := &browser{t: t, to: to, answers: make(map[int]chan message), events: make(chan struct{}, 1)}
	read := make(chan struct{})
	go func() { defer close(read); b.read(from) }()
	t.Cleanup(func() {
		b.tell("", "Browser.close", nil)
		to.Close()
		cmd.Wait()
		<-read
		os.RemoveAll(profile)
	})
	var target struct{ TargetID, SessionID string }
	b.get(&target, "Target.createTarget", map[string]any{"url": "about:blank"})
	b.get(&target, "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true})
	b.session = target.SessionID
	for _, domain := range []string{"Page", "Network", "Log", "Audits", "Accessibility", "DOM", "Runtime"} {
		b.do(domain+".enable", nil)
	}
	return b
}

func (b *browser) read(from io.Reader) {
	defer close(b.events)
	for r := bufio.NewReader(from); ; {
		raw, err := r.ReadBytes(0)
		if err != nil {
			return
		}
		var m message
		if json.Unmarshal(raw[:len(raw)-1], &m) != nil {
			return
		}
		b.mu.Lock()
		if c := b.answers[m.ID]; c != nil && m.Method == "" {
			c <- m
		} else if m.Method != "" {
			b.seen = append(b.seen, m)
		}
		b.mu.Unlock()
		select {
		case b.events <- struct{}{}:
		default:
		}
	}
}

// tell sends a command, and returns where its answer comes.
func (b *browser) tell(session, method string, params any) chan message {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sent++
	m := map[string]any{"id": b.sent, "method": method}
	if params != nil {
		m["params"] = params
	}
	if session != "" {
		m["sessionId"] = session
	}
	raw, err := json.Marshal(m)
	must(b.t, err)
	c := make(chan message, 1)
	b.answers[b.sent] = c
	b.to.Write(append(raw, 0)) // what is not written is not answered
	return c
}

// get has the browser do something, and reads its result.
func (b *browser) get(result any, method string, params any) {
	b.t.Helper()
	select {
	case m := <-b.tell(b.session, method, params):
		if m.Error != nil {
			b.t.Fatalf("%s: %s", method, m.Error.Message)
		}
		if result != nil {
			must(b.t, json.Unmarshal(m.Result, result))
		}
	case <-time.After(patience):
		b.t.Fatalf("%s: no answer", method)
	}
}

func (b *browser) do(method string, params any) {
	b.t.Helper()
	b.get(nil, method, params)
}

// happened returns the events of some methods so far.
func (b *browser) happened(methods ...string) (list []message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.seen {
		if slices.Contains(methods, m.Method) {
			list = append(list, m)
		}
	}
	return list
}

// visit opens a page, and waits until it is loaded.
func (b *browser) visit(url string) {
	b.t.Helper()
	before := len(b.happened("Page.loadEventFired"))
	b.do("Page.navigate", map[string]any{"url": url})
	b.loaded(before, url)
}

// loaded waits until more pages are loaded than before.
func (b *browser) loaded(before int, url string) {
	b.t.Helper()
	for end := time.After(patience); len(b.happened("Page.loadEventFired")) == before; {
		select {
		case <-b.events:
		case <-end:
			b.t.Fatalf("%s does not load", url)
		}
	}
}

// resize has the page on a screen of that size.
func (b *browser) resize(width, height int, scale float64, scheme string) {
	b.t.Helper()
	b.do("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600})
	b.do("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"}}})
}

// eval evaluates JavaScript, which the page itself has none of.
func eval[T any](b *browser, script string) (v T) {
	b.t.Helper()
	var r struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails json.RawMessage
	}
	b.get(&r, "Runtime.evaluate", map[string]any{"expression": script, "returnByValue": true})
	if len(r.ExceptionDetails) > 0 {
		b.t.Fatalf("%s: %s", script, r.ExceptionDetails)
	}
	must(b.t, json.Unmarshal(r.Result.Value, &v))
	return v
}

// press presses a key.
func (b *browser) press(key string, code int, text string) {
	b.t.Helper()
	p := map[string]any{"type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": code}
	if text != "" {
		p["text"] = text
	}
	b.do("Input.dispatchKeyEvent", p)
	p["type"] = "keyUp"
	delete(p, "text")
	b.do("Input.dispatchKeyEvent", p)
}

// An axNode is one that a screen reader is told of.
type axNode struct {
	Ignored    bool
	Role, Name struct{ Value any }
	Properties []struct {
		Name  string
		Value struct{ Value any }
	}
}

func (n *axNode) is(role string) bool { return n.Role.Value == role }
func (n *axNode) name() string        { return fmt.Sprint(n.Name.Value) }

func (n *axNode) property(name string) any {
	for _, p := range n.Properties {
		if p.Name == name {
			return p.Value.Value
		}
	}
	return nil
}

// accessible returns what a screen reader is told of.
func (b *browser) accessible() (list []axNode) {
	b.t.Helper()
	var tree struct{ Nodes []axNode }
	b.get(&tree, "Accessibility.getFullAXTree", nil)
	for _, n := range tree.Nodes {
		if !n.Ignored {
			list = append(list, n)
		}
	}
	return list
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
