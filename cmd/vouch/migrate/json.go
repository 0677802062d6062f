package migrate

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/vouchd/vouchd/cmd/vouch/migrate/jsondoc"
)

// quoted is a text as JSON has it.
func quoted(text string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.Encode(text) // of a string there is no error
	return strings.TrimSuffix(b.String(), "\n")
}

// insert plans a new member at the end of an object, with blanks before it as before the
// first.
func (p *plan) insert(in *jsondoc.Node, name, value string) {
	text := quoted(name) + ": " + value
	if len(in.Members) == 0 {
		p.edit(in.Start+1, in.Start+1, text)
		return
	}
	blank := string(p.file.Data[in.Start+1 : in.Members[0].Start])
	if strings.TrimSpace(blank) != "" { // a comment
		blank = " "
	}
	at := in.Members[len(in.Members)-1].Value.End
	p.edit(at, at, ","+blank+text)
}

// removeMembers plans to take members out of an object.
func (p *plan) removeMembers(in *jsondoc.Node, gone func(name string) bool) {
	n := len(in.Members)
	last := n // the members from there on all go
	for last > 0 && gone(in.Members[last-1].Name) {
		last--
	}
	for i := range last {
		if gone(in.Members[i].Name) {
			p.edit(in.Members[i].Start, in.Members[i+1].Start, "")
		}
	}
	switch {
	case last == n:
	case last == 0:
		p.edit(in.Members[0].Start, in.Members[n-1].Value.End, "")
	default:
		p.edit(in.Members[last-1].Value.End, in.Members[n-1].Value.End, "")
	}
}
