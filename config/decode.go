// Package config reads and watches the files under /etc/vouchd.
//
// Configuration grants identities, so nothing in it is guessed: a document is
// YAML without the parts that make two readers see two things (anchors,
// aliases, tags, duplicate keys), every key must be known, every value must be
// of its type, and each problem is reported with its file, its line and the way
// to fix it. What the values entitle to is the business of the packages that
// own them; this one knows the daemon's own settings and nothing of entries or
// credentials.
//
// Who may write the files is checked too, as far as ownership and modes tell.
// An access control list or a mount that lets others write stays out of reach.
package config

import (
	"cmp"
	"encoding"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Decode decodes one YAML document into v, a pointer to a struct whose tags say
// what the document may hold (see [Key]). File is the name that problems are
// reported under. An error is of type [Errors] and holds every problem found; v
// then holds what could be decoded, to look for more problems in and for nothing
// else.
//
// Strings, booleans, whole numbers, durations such as 1h30m, types that implement
// [encoding.TextUnmarshaler], structs, lists of these, any of them in an [At],
// a [Section] and [Sections] are known. A list without a value is empty; a scalar without a value, or
// with an empty one, is a problem.
func Decode(file string, data []byte, v any) error { return DecodeWith(file, data, v, nil) }

// DecodeWith is [Decode] for a document with [Sections], given their names.
func DecodeWith(file string, data []byte, v any, sections []string) error {
	d := decoder{file: file, sections: sections}
	d.document(data, v)
	return d.problems.Err()
}

type decoder struct {
	file     string
	problems Errors
	warnings Errors            // of deprecated keys
	sections []string          // names of the sections that [Sections] have
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

// mapping decodes n into the struct v. The path is that of the keys above,
// with a dot at its end.
func (d *decoder) mapping(v reflect.Value, n *yaml.Node, path string) {
	if n.Kind != yaml.MappingNode {
		d.problems.Add(d.pos(n), "%s must be keys with values, and is %s", cmp.Or(strings.TrimSuffix(path, "."), "the document"), kindName(n))
		return
	}
	keys := d.keysOf(v.Type())
	given := make(map[string]*yaml.Node)
	for i := 0; i < len(n.Content); i += 2 {
		name := n.Content[i].Value
		given[name] = n.Content[i+1]
		if keyOf(name, keys) == nil {
			d.problems.Add(d.pos(n.Content[i]), "unknown key %q; the nearest known is %s", clip(name), nearest(name, keys))
			if d.enough() {
				return
			}
		}
	}
	for _, k := range keys {
		field, value := v.Field(k.index), d.given(given, k)
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

// given returns the value of a key, which may have its earlier name, or nil.
func (d *decoder) given(values map[string]*yaml.Node, k Key) *yaml.Node {
	value, old := values[k.Name], values[k.Was]
	switch {
	case k.Was == "" || old == nil:
		return value
	case value != nil:
		d.problems.Add(d.pos(old), "%s is the old name of %s; give %[2]s alone", k.Was, k.Name)
		return value
	}
	d.warnings.Add(d.pos(old), "%s is deprecated; use %s", k.Was, k.Name)
	return old
}

// keysOf lists the keys of a mapping: those of its type, and its sections.
func (d *decoder) keysOf(t reflect.Type) []Key {
	keys := keysOf(t)
	for i := range t.NumField() {
		if t.Field(i).Type != sectionsType {
			continue
		}
		for _, name := range d.sections {
			keys = append(keys, Key{Name: name, index: i})
		}
	}
	return keys
}

// key decodes one key's value, which is nil where the mapping leaves it out.
func (d *decoder) key(field reflect.Value, mapping, value *yaml.Node, k Key) {
	if override, ok := d.set[k.Name]; ok {
		from := decoder{file: "--set " + k.Name, places: d.places}
		from.value(field, literal(override, field.Type()), k)
		d.problems = append(d.problems, from.problems...)
		return
	}
	switch {
	case value != nil:
		d.value(field, value, k)
	case k.Required:
		d.problems.Add(d.pos(mapping), "%s is missing; add it%s", k.Name, k.example(", like "))
	case k.Default != "":
		var from decoder // without a file: the place of a default says nothing
		from.value(field, literal(k.Default, field.Type()), k)
		if len(from.problems) > 0 {
			panic("config: a default is not allowed: " + from.problems.Error())
		}
	}
}

// literal is a word as if written in a document. One that stands for text is
// text, though it may look like a number.
func literal(word string, t reflect.Type) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Value: word, Style: yaml.DoubleQuotedStyle}
	if kind := plainType(t).Kind(); kind == reflect.Bool || kind == reflect.Int {
		n.Style = 0
	}
	return n
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
	case v.Type() == sectionType, v.Type() == sectionsType:
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
	if kinds, ok := t.(interface {
		SameKind(text, example string) bool
	}); ok && !kinds.SameKind(n.Value, k.Like) {
		k.Like = "" // an example of another kind of value misleads
	}
	switch {
	case err == nil:
		d.canonical(t, n, k)
	case strings.Contains(err.Error(), fmt.Sprintf("%q", clip(n.Value))): // it names the value itself
		d.problems.Add(d.pos(n), "%s: %v%s", k.Name, err, k.example("; write it like "))
	default:
		d.problems.Add(d.pos(n), "%s %q: %v%s", k.Name, clip(n.Value), err, k.example("; write it like "))
	}
}

// canonical refuses what a type reads but would not write, such as a whole
// SPIFFE ID where a trust domain is meant: part of it would go unheeded.
func (d *decoder) canonical(t encoding.TextUnmarshaler, n *yaml.Node, k Key) {
	m, ok := t.(encoding.TextMarshaler)
	if !ok {
		return
	}
	if text, err := m.MarshalText(); err != nil || string(text) != n.Value {
		d.problems.Add(d.pos(n), "%s %q is read as %q; write it so", k.Name, clip(n.Value), clip(string(text)))
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
		given := strconv.Quote(clip(n.Value))
		if value.Kind() == reflect.Int {
			given = clip(n.Value)
		}
		d.problems.Add(d.pos(n), "%s %s %v", k.Name, given, err)
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
		d.problems.Add(d.pos(n), "%s must be %s, and is %s%s", k.Name, want, kindName(n), k.example("; write it like "))
	case n.ShortTag() != tag && tag == "!!str":
		d.problems.Add(d.pos(n), "%s must be %s; put %s in quotes%s", k.Name, want, clip(n.Value), k.example("; write it like "))
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
