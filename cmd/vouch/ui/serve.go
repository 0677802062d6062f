package ui

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/cmd/vouch/ui/page"
)

// notTheLink says nothing that a stranger could use.
const notTheLink = "Open the link that vouch ui has printed, in this browser's address bar."

// A gatherer has what pages are made of.
type gatherer interface {
	gather(ctx context.Context, q question) *page.Facts
}

// A handler answers requests.
type handler struct {
	src    gatherer
	access *access
	turns  chan struct{} // held while a page is made
}

// maxAtOnce bounds how many pages are made at once.
const maxAtOnce = 4

func newHandler(src gatherer, a *access) http.Handler {
	return &handler{src: src, access: a, turns: make(chan struct{}, maxAtOnce)}
}

// contentPolicy is the page's content security policy: its own style, and nothing else.
var contentPolicy = "default-src 'none'; style-src " + page.StyleSource() + "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for name, value := range map[string]string{
		"Content-Security-Policy":      contentPolicy,
		"Content-Type":                 "text/html; charset=utf-8",
		"Cache-Control":                "no-store",
		"X-Content-Type-Options":       "nosniff",
		"X-Frame-Options":              "DENY",
		"Referrer-Policy":              "no-referrer",
		"Cross-Origin-Opener-Policy":   "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin",
		"Cross-Origin-Embedder-Policy": "require-corp",
		"Permissions-Policy":           "camera=(), microphone=(), geolocation=()",
	} {
		w.Header().Set(name, value)
	}
	if status, why := refuse(r); status != 0 {
		say(w, status, "Refused", why)
		return
	}
	if token, ok := strings.CutPrefix(r.URL.Path, openPath); ok {
		h.open(w, r, token)
		return
	}
	if !h.access.may(r) {
		say(w, http.StatusForbidden, "Not open here", notTheLink)
		return
	}
	h.page(w, r)
}

// refuse says why a request is none of a person who looks at the page.
func refuse(r *http.Request) (status int, why string) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return http.StatusMethodNotAllowed, "This page can only be looked at."
	}
	if !isLocal(r.Host) {
		return http.StatusMisdirectedRequest, "This page is at 127.0.0.1 or localhost alone."
	}
	if o := r.Header.Get("Origin"); o != "" { // no page of another origin reads this one, by any name
		u, err := url.Parse(o)
		if err != nil || u.Host != r.Host || u.Scheme != "http" {
			return http.StatusForbidden, notTheLink
		}
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin":
	default:
		return http.StatusForbidden, notTheLink
	}
	if p := r.Header.Get("Sec-Purpose"); p != "" { // a browser looks ahead, and nobody opened it
		return http.StatusForbidden, notTheLink
	}
	return 0, ""
}

// isLocal tells whether a request was for this machine by a name that no DNS server can give
// to another. The port is not looked at: ssh -L changes it.
func isLocal(host string) bool {
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		name, port = host, "80"
	}
	for _, c := range port {
		if c < '0' || c > '9' {
			return false
		}
	}
	return name == "127.0.0.1" || name == "localhost"
}

// open is the link that works once.
func (h *handler) open(w http.ResponseWriter, r *http.Request, token string) {
	if r.Method != http.MethodGet {
		say(w, http.StatusForbidden, "Not open here", notTheLink)
		return
	}
	if why := h.access.open(w, r, token); why != "" {
		say(w, http.StatusForbidden, "Not open here", why)
		return
	}
	w.Header().Set("Location", h.access.base)
	w.WriteHeader(http.StatusSeeOther)
}

// gatherLimit is how long a page may take to be gathered.
const gatherLimit = 20 * time.Second

func (h *handler) page(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), gatherLimit)
	defer cancel()
	select {
	case h.turns <- struct{}{}:
		defer func() { <-h.turns }()
	case <-ctx.Done():
		say(w, http.StatusServiceUnavailable, "Too busy", "Too many pages are being made; try again.")
		return
	}
	q := r.URL.Query()
	ask := question{page.RangeOf(q.Get("range")), 0, ""}
	if q.Get("refresh") == "30" {
		ask.refresh = 30 * time.Second
	}
	var body bytes.Buffer
	var err error
	switch strings.TrimPrefix(r.URL.Path, h.access.base) {
	case "":
		err = page.Overview(&body, h.src.gather(ctx, ask))
	case "agent":
		id, wrong := spiffeid.FromString(q.Get("id"))
		if wrong != nil {
			say(w, http.StatusBadRequest, "No such agent", "That is no SPIFFE ID.")
			return
		}
		ask.agent = id.String()
		err = page.Agent(&body, h.src.gather(ctx, ask), ask.agent)
	default:
		say(w, http.StatusNotFound, "No such page", "There is nothing here.")
		return
	}
	if err != nil {
		say(w, http.StatusInternalServerError, "This page could not be made", fmt.Sprintf("Please report it: %v", err))
		return
	}
	body.WriteTo(w) // an error here is the browser going away
}

// say answers with a few words.
func say(w http.ResponseWriter, status int, title, text string) {
	var body bytes.Buffer
	if err := page.Say(&body, title, text); err != nil {
		body.Reset()
		io.WriteString(&body, title)
	}
	w.WriteHeader(status)
	body.WriteTo(w) // an error here is the browser going away
}
