package page

import (
	"crypto/sha256"
	"embed"
	_ "embed"
	"encoding/base64"
	"html/template"
	"io"
	"maps"
	"slices"
)

//go:embed page.html
var files embed.FS

//go:embed style.css
var styleText string

var (
	style = template.CSS(styleText)
	pages = template.Must(template.New("").ParseFS(files, "page.html"))
)

// StyleSource is the source of the page's style, as a content security policy names it.
func StyleSource() string {
	sum := sha256.Sum256([]byte(styleText))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// Overview writes the page of a host.
func Overview(w io.Writer, f *Facts) error { return pages.ExecuteTemplate(w, "overview", f.overview()) }

// Agent writes the page of an identity.
func Agent(w io.Writer, f *Facts, id string) error {
	return pages.ExecuteTemplate(w, "agent", f.agent(id))
}

// A Message is a page of a few words, which says nothing of the host.
type Message struct {
	Title, Text string
	Style       template.CSS
}

// Say writes a page of a few words.
func Say(w io.Writer, title, text string) error {
	return pages.ExecuteTemplate(w, "message", Message{title, text, style})
}

// without are the names of a map that are not among others, in their order.
func without[V any](m map[string]V, others map[string]bool) (names []string) {
	for _, n := range slices.Sorted(maps.Keys(m)) {
		if !others[n] {
			names = append(names, n)
		}
	}
	return names
}
