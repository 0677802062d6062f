//go:build ui

package ui

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"image/png"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// These tests look at the page as a browser does. They need Debian's chromium, so that
// make test-ui runs them, and make test does not.

var screenshots = flag.String("screenshots", "", "write screenshots into this `directory`")

// open serves the sample to a browser of its own, and opens the link there.
func open(t *testing.T, s *sample) (b *browser, base string) {
	t.Helper()
	l, err := listenOn("127.0.0.1:0", "")
	must(t, err)
	a := newAccess(time.Now, linkLife, sessionLife)
	h := &http.Server{Handler: newHandler(s, a), ConnContext: withPeer}
	go h.Serve(guarded(l, io.Discard))
	t.Cleanup(func() { h.Close() })
	b = newBrowser(t)
	b.visit("http://" + l.Addr().String() + a.link())
	base = "http://" + l.Addr().String() + a.base
	if at := eval[string](b, "location.href"); at != base {
		t.Fatalf("the link leads to %s, want %s", at, base)
	}
	return b, base
}

var paths = []string{"", "?range=7d", "agent?id=spiffe://example.org/agent/coder", "agent?id=spiffe://example.org/agent/mail-triage&range=30d", "nothing"}

// TestThePageNeverScrollsSideways, however narrow the screen or long the names.
func TestThePageNeverScrollsSideways(t *testing.T) {
	t.Parallel()
	s := newSample()
	s.long = strings.Repeat("unbreakable", 15)
	b, base := open(t, s)
	for _, width := range []int{320, 390, 768, 833, 1280} {
		for _, p := range append(paths, "agent?id="+domain+"agent/"+s.long) {
			b.resize(width, 844, 1, "light")
			b.visit(base + p)
			if got := eval[int](b, "document.documentElement.scrollWidth"); got > width {
				wide := eval[string](b, `[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className + ': ' + e.textContent.slice(0, 40)).slice(0, 5).join('\n')`)
				t.Errorf("%q at %d is %d wide:\n%s", p, width, got, wide)
			}
		}
	}
}

// TestEverythingIsReachedWithTheKeyboard in the order of the page, and shows that it is.
func TestEverythingIsReachedWithTheKeyboard(t *testing.T) {
	t.Parallel()
	b, base := open(t, newSample())
	for _, p := range []string{"", "agent?id=spiffe://example.org/agent/coder"} {
		for _, width := range []int{390, 1280} {
			b.resize(width, 844, 1, "light")
			b.visit(base + p)
			eval[bool](b, `document.querySelectorAll('details').forEach(d => d.open = true), true`)
			want := eval[int](b, `window.all = [...document.querySelectorAll('a[href], summary, button, input, [tabindex="0"]')]; all.length`)
			if want < 10 {
				t.Fatalf("%q has %d elements to reach", p, want)
			}
			for i := range want {
				b.press("Tab", 9, "")
				got := eval[struct {
					At      int
					Text    string
					Style   string
					Outline float64
					Seen    bool
				}](b, `(() => { const e = document.activeElement, s = getComputedStyle(e), r = e.getBoundingClientRect();
					return {At: all.indexOf(e), Text: e.outerHTML.slice(0, 80), Style: s.outlineStyle, Outline: parseFloat(s.outlineWidth), Seen: r.width > 0 && r.height > 0 && r.top < innerHeight && r.bottom > 0} })()`)
				if got.At != i || got.Style == "none" || got.Outline < 2 || !got.Seen {
					t.Fatalf("%q at %d: Tab number %d reaches %+v", p, width, i+1, got)
				}
			}
		}
	}
	b.visit(base)
	b.press("Tab", 9, "")
	b.press("Enter", 13, "\r")
	if at := eval[string](b, "document.activeElement.id"); at != "main" {
		t.Errorf("the skip link leads to %q", at)
	}
}

// TestScreenReadersAreToldOfEverything: landmarks, headings in order, tables, and names.
func TestScreenReadersAreToldOfEverything(t *testing.T) {
	t.Parallel()
	b, base := open(t, newSample())
	for _, p := range []string{"", "agent?id=spiffe://example.org/agent/coder"} {
		for _, width := range []int{390, 1280} {
			b.resize(width, 844, 1, "light")
			b.visit(base + p)
			roles := make(map[string]int)
			level := 0.0
			for _, n := range b.accessible() {
				role, _ := n.Role.Value.(string)
				roles[role]++
				switch role {
				case "link", "image", "region", "navigation", "DisclosureTriangle", "heading", "rowheader", "columnheader":
					if strings.TrimSpace(n.name()) == "" || n.Name.Value == nil {
						t.Errorf("%q at %d: a %s has no name", p, width, role)
					}
				}
				if n.is("heading") {
					l, _ := n.property("level").(float64)
					if l > level+1 {
						t.Errorf("%q at %d: heading %q of level %v comes after level %v", p, width, n.name(), l, level)
					}
					level = l
				}
				if n.is("image") && !strings.Contains(n.name(), "over") {
					t.Errorf("%q at %d: a plot is called %q", p, width, n.name())
				}
			}
			for role, least := range map[string]int{"banner": 1, "main": 1, "contentinfo": 1, "navigation": 1, "image": 4, "table": 2, "columnheader": 8, "rowheader": 2, "cell": 8, "heading": 6, "DisclosureTriangle": 1} {
				if roles[role] < least {
					t.Errorf("%q at %d has %d of %s, want %d at least", p, width, roles[role], role, least)
				}
			}
		}
	}
}

// TestAllTextHasContrast of 4.5 to what is behind it (WCAG 2.2, 1.4.3), in light and in dark.
func TestAllTextHasContrast(t *testing.T) {
	t.Parallel()
	s := newSample()
	b, base := open(t, s)
	const measure = `(() => {
		const rgb = c => c.match(/[\d.]+/g).map(Number);
		const lum = c => { const [r, g, b] = c.slice(0, 3).map(v => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4 }); return .2126 * r + .7152 * g + .0722 * b };
		const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c } return [255, 255, 255] };
		const bad = []; let n = 0;
		const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
		while (walk.nextNode()) {
			const e = walk.currentNode.parentElement;
			if (!walk.currentNode.textContent.trim() || e.closest('svg')) continue;
			n++;
			const a = lum(rgb(getComputedStyle(e).color)), z = lum(behind(e)), ratio = (Math.max(a, z) + .05) / (Math.min(a, z) + .05);
			if (ratio < 4.5) bad.push(ratio.toFixed(2) + ' ' + e.outerHTML.slice(0, 90));
		}
		for (const e of document.querySelectorAll('svg.bars')) {
			const a = lum(rgb(getComputedStyle(e).fill)), z = lum(behind(e.parentElement)), ratio = (Math.max(a, z) + .05) / (Math.min(a, z) + .05);
			if (ratio < 3) bad.push('plot ' + ratio.toFixed(2));
		}
		return {n, bad: [...new Set(bad)]};
	})()`
	for _, scheme := range []string{"light", "dark"} {
		for _, p := range paths {
			b.resize(1280, 900, 1, scheme)
			b.visit(base + p)
			eval[bool](b, `document.querySelectorAll('details').forEach(d => d.open = true), true`)
			got := eval[struct {
				N   int
				Bad []string
			}](b, measure)
			if got.N < 2 || len(got.Bad) > 0 {
				t.Errorf("%s %q: of %d texts these lack contrast:\n%s", scheme, p, got.N, strings.Join(got.Bad, "\n"))
			}
		}
	}
	if light, dark := eval[string](b, "getComputedStyle(document.body).backgroundColor"), ""; true {
		b.resize(1280, 900, 1, "light")
		if dark = eval[string](b, "getComputedStyle(document.body).backgroundColor"); light == dark {
			t.Errorf("light and dark are both %s", light)
		}
	}
}

// TestThePageAsksForNothingElse: a request for each page, and none for anything beside it; no
// violation of its policy, nothing in the console, and no script.
func TestThePageAsksForNothingElse(t *testing.T) {
	t.Parallel()
	b, base := open(t, newSample())
	for _, p := range paths {
		b.visit(base + p)
	}
	for _, m := range b.happened("Network.requestWillBeSent") {
		var r struct {
			Type    string
			Request struct{ URL string }
		}
		must(t, json.Unmarshal(m.Params, &r))
		if r.Type != "Document" || !strings.HasPrefix(r.Request.URL, base) && !strings.Contains(r.Request.URL, openPath) {
			t.Errorf("it asks for %s %s", r.Type, r.Request.URL)
		}
	}
	if n := len(b.happened("Network.requestWillBeSent")); n < len(paths)+1 {
		t.Errorf("%d requests for %d pages were seen", n, len(paths))
	}
	for _, m := range b.happened("Log.entryAdded", "Audits.issueAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled") {
		if !strings.Contains(string(m.Params), "404") { // of the page that is not there
			t.Errorf("%s: %s", m.Method, m.Params)
		}
	}
	// The policy is in force: what is put into the page is not run, and not asked for.
	b.visit(base)
	ran := eval[bool](b, `(() => { const s = document.createElement('script'); s.textContent = 'window.ran = true'; document.body.append(s);
		const i = document.createElement('img'); i.src = '/x.png'; document.body.append(i); return window.ran === true })()`)
	if ran {
		t.Error("a script that was put into the page has run")
	}
	for end := time.After(patience); len(b.happened("Audits.issueAdded")) < 2; {
		select {
		case <-b.events:
		case <-end:
			t.Fatalf("the browser reports %d violations of the policy, want 2", len(b.happened("Audits.issueAdded")))
		}
	}
}

// TestAnotherBrowserSeesNothing with the address alone.
func TestAnotherBrowserSeesNothing(t *testing.T) {
	t.Parallel()
	_, base := open(t, newSample())
	other := newBrowser(t)
	other.visit(base)
	if text := eval[string](other, "document.body.innerText"); !strings.Contains(text, notTheLink) || strings.Contains(text, "build-7") {
		t.Errorf("it sees %s", text)
	}
}

// TestAServerOnAnotherPortGetsNothing: not the cookie, and no page for a page of its own that
// knows the address.
func TestAServerOnAnotherPortGetsNothing(t *testing.T) {
	t.Parallel()
	b, base := open(t, newSample())
	var got []*http.Request
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r)
		fmt.Fprintf(w, `<a id="a" href="%s">look</a>`, base)
	}))
	defer other.Close()
	b.visit(other.URL)
	b.visit(other.URL + "/open/")
	before := len(b.happened("Page.loadEventFired"))
	eval[bool](b, "document.getElementById('a').click(), true")
	b.loaded(before, base)
	if text := eval[string](b, "document.body.innerText"); !strings.Contains(text, notTheLink) {
		t.Errorf("a link on another port's page leads to %s", text)
	}
	if len(got) < 2 {
		t.Errorf("the other server was asked %d times", len(got))
	}
	for _, r := range got {
		if len(r.Cookies()) > 0 {
			t.Errorf("%s has the cookie", r.URL)
		}
	}
	b.visit(base) // as typed into the address bar, it is still open
	if text := eval[string](b, "document.body.innerText"); !strings.Contains(text, "agent/research") {
		t.Errorf("afterwards it shows %s", text)
	}
}

// TestScreenshots takes those of docs/ui.md.
func TestScreenshots(t *testing.T) {
	t.Parallel()
	b, base := open(t, newSample())
	const agent = "agent?id=spiffe://example.org/agent/research"
	for _, shot := range []struct {
		name, path, scheme string
		width, height      int
		scale              float64
	}{
		{"desktop-light", "", "light", 1280, 900, 1}, {"desktop-dark", agent, "dark", 1280, 900, 1},
		{"phone-light", "", "light", 390, 844, 1.5}, {"phone-dark", agent, "dark", 390, 844, 1.5},
	} {
		b.resize(shot.width, shot.height, shot.scale, shot.scheme)
		b.visit(base + shot.path)
		var taken struct{ Data string }
		b.get(&taken, "Page.captureScreenshot", map[string]any{"format": "png"})
		raw, err := base64.StdEncoding.DecodeString(taken.Data)
		must(t, err)
		img, err := png.Decode(bytes.NewReader(raw))
		must(t, err)
		if at := img.Bounds().Size(); at.X != int(float64(shot.width)*shot.scale) {
			t.Errorf("%s is %v", shot.name, at)
		}
		var small bytes.Buffer
		must(t, (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&small, img))
		if small.Len() < 20_000 || small.Len() > 150_000 {
			t.Errorf("%s has %d bytes", shot.name, small.Len())
		}
		if *screenshots != "" {
			must(t, os.WriteFile(filepath.Join(*screenshots, shot.name+".png"), small.Bytes(), 0o644))
		}
	}
}
