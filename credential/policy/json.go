package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

const maxDepth = 64

// ErrJSON means content that two readers of JSON could read differently.
var ErrJSON = errors.New("the content is not JSON that all readers read alike")

// ReadJSON returns the values that the pointers (RFC 6901) name, with [Missing] for those
// that are not there. It refuses duplicate keys, keys that differ from one that a pointer
// names by their case alone, text that is not UTF-8, more than 64 levels, and
// anything after the value. The error wraps [ErrJSON].
func ReadJSON(content []byte, pointers []string) (map[string]Value, error) {
	if !utf8.Valid(content) || bytes.HasPrefix(content, []byte("\ufeff")) {
		return nil, fmt.Errorf("%w: it is not UTF-8, or begins with a byte order mark", ErrJSON)
	}
	r := jsonReader{dec: json.NewDecoder(bytes.NewReader(content)), found: make(map[string]Value), wanted: make(map[string]bool)}
	r.dec.UseNumber()
	for _, p := range pointers {
		for i := range p {
			if p[i] == '/' && i > 0 {
				r.wanted[p[:i]] = true // on the way to it
			}
		}
		r.wanted[p] = true
	}
	if err := r.value("", 0); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrJSON, err)
	}
	if _, err := r.dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: something follows it", ErrJSON)
	}
	for _, p := range pointers {
		if _, ok := r.found[p]; !ok {
			r.found[p] = Value{Kind: Missing}
		}
	}
	return r.found, nil
}

// A jsonReader walks one document.
type jsonReader struct {
	dec    *json.Decoder
	wanted map[string]bool // pointers, and the beginnings of pointers
	found  map[string]Value
}

// value reads the value at a place.
func (r *jsonReader) value(at string, depth int) error {
	token, err := r.dec.Token()
	if err != nil {
		return err
	}
	v := Value{Kind: Other}
	switch t := token.(type) {
	case json.Delim:
		if depth == maxDepth {
			return fmt.Errorf("it has more than %d levels", maxDepth)
		}
		if t == '{' {
			err = r.object(at, depth+1)
		} else {
			err = r.list(at, depth+1)
		}
		if err != nil {
			return err
		}
	case string:
		v = Value{Text: t, Kind: String}
	case json.Number:
		v = Value{Text: t.String(), Kind: Number}
		if v.Number, err = t.Float64(); err != nil {
			return err
		}
	case bool:
		v.Text = strconv.FormatBool(t)
	case nil:
		v.Text = "null"
	}
	if r.wanted[at] {
		r.found[at] = v
	}
	return nil
}

func (r *jsonReader) object(at string, depth int) error {
	seen := make(map[string]bool)
	for r.dec.More() {
		token, err := r.dec.Token()
		if err != nil {
			return err
		}
		key := token.(string) // the decoder takes nothing else
		if seen[key] {
			return fmt.Errorf("it has the key %.40q twice", key)
		}
		seen[key] = true
		place := at + "/" + escapePointer(key)
		if like := r.like(place); like != "" {
			return fmt.Errorf("it has the key %.40q, which some readers take for %.80q", key, like)
		}
		if err := r.value(place, depth); err != nil {
			return err
		}
	}
	_, err := r.dec.Token()
	return err
}

// like returns the wanted place that differs from this one by its case alone.
func (r *jsonReader) like(place string) string {
	if r.wanted[place] {
		return ""
	}
	for w := range r.wanted {
		if strings.EqualFold(w, place) {
			return w
		}
	}
	return ""
}

func (r *jsonReader) list(at string, depth int) error {
	for i := 0; r.dec.More(); i++ {
		if err := r.value(at+"/"+strconv.Itoa(i), depth); err != nil {
			return err
		}
	}
	_, err := r.dec.Token()
	return err
}

func escapePointer(key string) string {
	return strings.ReplaceAll(strings.ReplaceAll(key, "~", "~0"), "/", "~1")
}
