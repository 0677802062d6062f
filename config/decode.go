// Package config reads and watches the files under /etc/vouchd.
//
// Configuration grants identities, so nothing in it is guessed: a document is
// YAML without the parts that make two readers see two things (anchors,
// aliases, tags, duplicate keys), every key must be known, every value must be
// of its type, and each problem is reported with its file, its line and the way
// to mend it. What the values entitle to is the business of the packages that
// own them; this one knows the daemon's own settings and nothing of entries or
// credentials.
//
// Who may write the files is checked too, as far as ownership and modes tell.
// An access control list or a mount that lets others write stays out of reach.
package config

import (
	"bytes"
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"io"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	// MaxFileLen bounds a configuration file, in bytes.
	MaxFileLen = 1 << 20
	// maxDepth bounds how deep mappings and lists may be nested. The deepest
	// document there is has four levels.
	maxDepth = 12
)

// Decode decodes one YAML document into v, a pointer to a struct whose tags say
// what the document may hold (see [Key]). File is the name that problems are
// reported under. An error is of type [Errors] and holds every problem found; v
// then holds what could be decoded, to look for more problems in and for nothing
// else.
//
// Strings, booleans, whole numbers, durations such as 1h30m, types that implement
// [encoding.TextUnmarshaler], structs, lists of these, any of them in an [At],
// and a [Section] are known. A list without a value is empty; a scalar without a value, or
// with an empty one, is a problem.
func Decode(file string, data []byte, v any) error {
	d := decoder{file: file}
	d.document(data, v)
	return d.problems.Err()
}

type decoder struct {
	file     string
	problems Errors
	set      map[string]string // overrides by dotted key
	places   map[string]Pos    // of each dotted key outside lists that is given, where wanted
}

func (d *decoder) pos(n *yaml.Node) Pos {
	return Pos{File: d.file, Line: n.Line, Column: n.Column}
}

func (d *decoder) document(data []byte, v any) {
	root, err := parse(data)
	if err != nil {
		err.File = d.file
		d.problems = append(d.problems, err)
		return
	}
	if d.plain(root, 0) {
		d.mapping(reflect.ValueOf(v).Elem(), root, "")
	}
}

// parse returns the document's top node; an empty document is an empty mapping.
func parse(data []byte) (*yaml.Node, *Error) {
	empty := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: 1, Column: 1}
	if len(data) > MaxFileLen {
		return nil, &Error{Msg: fmt.Sprintf("the file has %d bytes and may have %d; split it", len(data), MaxFileLen)}
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return empty, nil
	}
	if err != nil {
		return nil, syntaxError(data, err)
	}
	var second yaml.Node
	if err := dec.Decode(&second); err == nil {
		return nil, &Error{Pos{Line: second.Line}, "a second document begins here; put it into a file of its own"}
	} else if !errors.Is(err, io.EOF) {
		return nil, syntaxError(data, err)
	}
	if len(doc.Content) != 1 || isNull(doc.Content[0]) {
		return empty, nil
	}
	return doc.Content[0], nil
}

// syntaxError finds the line on its own: the parser's numbers count from 0 or
// from 1 by the kind of error, and often name the beginning of the block. The
// first line that completes the same error is the one to look at.
func syntaxError(data []byte, err error) *Error {
	what := syntaxMessage(err)
	var ends []int // of each line
	for line := range bytes.Lines(data) {
		ends = append(ends, len(line)+last(ends))
	}
	n := sort.Search(len(ends)-1, func(i int) bool {
		var doc yaml.Node
		dec := yaml.NewDecoder(bytes.NewReader(data[:ends[i]]))
		err := dec.Decode(&doc)
		if err == nil {
			err = dec.Decode(&doc)
		}
		return err != nil && syntaxMessage(err) == what
	})
	mend := "check the indentation, quotes and brackets here"
	switch {
	case strings.Contains(what, "mapping values"):
		mend = "put text that holds a colon and a space in quotes, and check the indentation"
	case strings.Contains(what, "cannot start any token"):
		mend = "indent with spaces, not tabs, and put text that begins with @, ` or % in quotes"
	case strings.Contains(what, "octet"), strings.Contains(what, "control characters"), strings.Contains(what, "UTF"):
		mend = "save the file as UTF-8 text"
	case strings.Contains(what, "unknown anchor"):
		mend = aliasMend
	}
	return &Error{Pos{Line: n + 1}, "malformed YAML: " + what + "; " + mend}
}

func last(ends []int) int {
	if len(ends) == 0 {
		return 0
	}
	return ends[len(ends)-1]
}

// syntaxMessage takes "yaml: line 3: " off.
func syntaxMessage(err error) string {
	s := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(s, "line "); ok {
		_, s, _ = strings.Cut(rest, ": ")
	}
	return clip(s)
}

const aliasMend = "anchors and aliases are not accepted: write the value out, and put text that begins with & or * in quotes"

// plain checks that the tree under n holds only mappings with distinct words as
// keys, lists and scalars. It reports whether the tree can be decoded, so that
// its other problems are found in the same run.
func (d *decoder) plain(n *yaml.Node, depth int) bool {
	switch {
	case depth > maxDepth:
		d.problems.Add(d.pos(n), "nested deeper than %d levels; check the indentation", maxDepth)
		return false
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.problems.Add(d.pos(n), "%s", aliasMend)
		return false
	case n.Style&yaml.TaggedStyle != 0:
		d.problems.Add(d.pos(n), "tag %s is not accepted; remove it, and put text that begins with ! in quotes", clip(n.Tag))
		return false
	}
	ok := n.Kind != yaml.MappingNode || d.distinct(n)
	for _, child := range n.Content {
		ok = d.plain(child, depth+1) && ok
		if d.enough() {
			return false
		}
	}
	return ok
}

// enough reports whether there are so many problems that looking for others is
// work for nobody.
func (d *decoder) enough() bool { return len(d.problems) > 5*MaxErrors }

// distinct checks a mapping's keys, and reports whether all are words.
func (d *decoder) distinct(n *yaml.Node) bool {
	words := true
	seen := make(map[string]int)
	for i := 0; i < len(n.Content); i += 2 {
		k := n.Content[i]
		if k.Kind != yaml.ScalarNode {
			d.problems.Add(d.pos(k), "a key is %s; it must be a plain word", kindName(k))
			words = false
		} else if line, ok := seen[k.Value]; ok {
			d.problems.Add(d.pos(k), "key %q is given again, first in line %d; keep one", clip(k.Value), line)
		} else {
			seen[k.Value] = k.Line
		}
	}
	return words
}

// mapping decodes n into the struct v. The path is that of the keys above,
// with a dot at its end.
func (d *decoder) mapping(v reflect.Value, n *yaml.Node, path string) {
	if n.Kind != yaml.MappingNode {
		d.problems.Add(d.pos(n), "%s must be keys with values, and is %s", cmp.Or(strings.TrimSuffix(path, "."), "the document"), kindName(n))
		return
	}
	keys := keysOf(v.Type())
	given := make(map[string]*yaml.Node)
	for i := 0; i < len(n.Content); i += 2 {
		name := n.Content[i].Value
		given[name] = n.Content[i+1]
		if !isKey(name, keys) {
			d.problems.Add(d.pos(n.Content[i]), "unknown key %q; the nearest known is %s", clip(name), nearest(name, keys))
		}
	}
	for _, k := range keys {
		field, value := v.Field(k.index), given[k.Name]
		k.Name = path + k.Name
		if isMapping(field.Type()) {
			if value == nil || isNull(value) {
				value = &yaml.Node{Kind: yaml.MappingNode, Line: n.Line, Column: n.Column}
			}
			d.mapping(field, value, k.Name+".")
			continue
		}
		d.key(field, n, value, k)
	}
	for i := range v.NumField() {
		if v.Field(i).Type() == posType {
			v.Field(i).Set(reflect.ValueOf(d.pos(n)))
		}
	}
}

// key decodes one key's value, which is nil where the mapping leaves it out.
func (d *decoder) key(field reflect.Value, mapping, value *yaml.Node, k Key) {
	if override, ok := d.set[k.Name]; ok {
		from := decoder{file: "--set " + k.Name, places: d.places}
		from.value(field, &yaml.Node{Kind: yaml.ScalarNode, Value: override, Style: literalStyle(field.Type())}, k)
		d.problems = append(d.problems, from.problems...)
		return
	}
	switch {
	case value != nil:
		d.value(field, value, k)
	case k.Required:
		d.problems.Add(d.pos(mapping), "%s is missing; add it%s", k.Name, strings.Replace(k.example(), "; write it", ",", 1))
	case k.Default != "":
		// A default is part of the program, and where it stands says nothing.
		node := &yaml.Node{Kind: yaml.ScalarNode, Value: k.Default, Style: literalStyle(field.Type())}
		from := decoder{}
		from.value(field, node, k)
	}
}

// literalStyle makes a word that stands for text be text, though it may look
// like a number or a boolean.
func literalStyle(t reflect.Type) yaml.Style {
	if kind := plainType(t).Kind(); kind == reflect.Bool || kind == reflect.Int {
		return 0
	}
	return yaml.DoubleQuotedStyle
}

func (d *decoder) value(v reflect.Value, n *yaml.Node, k Key) {
	if d.places != nil {
		d.places[k.Name] = d.pos(n)
	}
	if l, ok := v.Addr().Interface().(interface{ located() (any, *Pos) }); ok {
		value, pos := l.located()
		*pos = d.pos(n)
		v = reflect.ValueOf(value).Elem()
	}
	if t, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if d.scalar(n, "!!str", k) {
			d.text(t, n, k)
		}
		return
	}
	switch {
	case v.Type() == durationType:
		d.duration(v, n, k)
	case v.Kind() == reflect.String:
		if d.scalar(n, "!!str", k) {
			d.allowed(v, reflect.ValueOf(n.Value), n, k)
		}
	case v.Kind() == reflect.Bool:
		if d.scalar(n, "!!bool", k) {
			v.SetBool(strings.EqualFold(n.Value, "true"))
		}
	case v.Kind() == reflect.Int:
		if d.scalar(n, "!!int", k) {
			d.number(v, n, k)
		}
	case v.Type() == sectionType:
		d.section(v, n, k)
	case v.Kind() == reflect.Slice:
		d.list(v, n, k)
	case v.Kind() == reflect.Struct:
		if n.Kind != yaml.MappingNode {
			d.problems.Add(d.pos(n), "each of %s must be keys with values, and this is %s", k.Name, kindName(n))
			return
		}
		d.mapping(v, n, "") // the line says in which element of the list
	default:
		panic("config: no document can hold a " + v.Type().String())
	}
}

func (d *decoder) text(t encoding.TextUnmarshaler, n *yaml.Node, k Key) {
	err := t.UnmarshalText([]byte(n.Value))
	switch {
	case err == nil:
	case strings.Contains(err.Error(), fmt.Sprintf("%q", clip(n.Value))): // it names the value itself
		d.problems.Add(d.pos(n), "%s: %v%s", k.Name, err, k.example())
	default:
		d.problems.Add(d.pos(n), "%s %q: %v%s", k.Name, clip(n.Value), err, k.example())
	}
}

func (d *decoder) duration(v reflect.Value, n *yaml.Node, k Key) {
	if n.Kind == yaml.ScalarNode && (n.ShortTag() == "!!int" || n.ShortTag() == "!!float") {
		d.problems.Add(d.pos(n), "%s %s has no unit; write it like 90s, 5m or 1h30m", k.Name, clip(n.Value))
		return
	}
	if !d.scalar(n, "!!str", k) {
		return
	}
	length, err := time.ParseDuration(n.Value)
	if err != nil {
		d.problems.Add(d.pos(n), "%s %q is not a length of time; write it like 90s, 5m or 1h30m", k.Name, clip(n.Value))
		return
	}
	d.allowed(v, reflect.ValueOf(length), n, k)
}

// number takes decimal digits only: 0x10, 010 and 1_0 are read as other numbers
// by other programs.
func (d *decoder) number(v reflect.Value, n *yaml.Node, k Key) {
	i, err := strconv.Atoi(n.Value)
	if err != nil || strconv.Itoa(i) != n.Value {
		d.problems.Add(d.pos(n), "%s %s is not a whole number; write it like 10", k.Name, clip(n.Value))
		return
	}
	d.allowed(v, reflect.ValueOf(i), n, k)
}

// allowed sets v if the key's tags allow the value.
func (d *decoder) allowed(v, value reflect.Value, n *yaml.Node, k Key) {
	if err := k.allows(value); err != nil {
		d.problems.Add(d.pos(n), "%s %s %v", k.Name, clip(n.Value), err)
		return
	}
	v.Set(value.Convert(v.Type()))
}

func (d *decoder) list(v reflect.Value, n *yaml.Node, k Key) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.problems.Add(d.pos(n), "%s must be a list, and is %s; put each element on a line of its own after \"- \"", k.Name, kindName(n))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, element := range n.Content {
		d.value(v.Index(i), element, k)
		if d.enough() {
			return
		}
	}
}

// scalar checks that n is a scalar of the wanted type with something in it.
func (d *decoder) scalar(n *yaml.Node, tag string, k Key) bool {
	want := map[string]string{"!!str": "text", "!!bool": "true or false", "!!int": "a whole number"}[tag]
	switch {
	case isNull(n) || n.Kind == yaml.ScalarNode && n.Value == "":
		d.problems.Add(d.pos(n), "%s has no value; give it one or remove the line", k.Name)
	case n.Kind != yaml.ScalarNode:
		d.problems.Add(d.pos(n), "%s must be %s, and is %s%s", k.Name, want, kindName(n), k.example())
	case n.ShortTag() != tag && tag == "!!str":
		d.problems.Add(d.pos(n), "%s must be %s; put %s in quotes%s", k.Name, want, clip(n.Value), k.example())
	case n.ShortTag() != tag:
		d.problems.Add(d.pos(n), "%s must be %s, and is %s", k.Name, want, clip(n.Value))
	default:
		return true
	}
	return false
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

func kindName(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "keys with values"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case isNull(n):
		return "empty"
	}
	return fmt.Sprintf("%q", clip(n.Value))
}

// clip shortens text from a file for a message.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
