package config

import (
	"encoding"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// A Key is one key that a document may hold. It is read from the struct tags
// of the type that the document is decoded into:
//
//	yaml:"name"        the key; a field without it is not read from documents
//	was:"name"         an earlier name of the key, deprecated; both at once is an error
//	required:"true"    leaving the key out is an error
//	default:"1h"       what leaving it out means, in the document's own writing
//	min:"1m" max:"24h" for a duration or a number, both inclusive and together
//	oneof:"a b"        the words it may be
//	like:"…"           an example, for the message about a value that is not one
type Key struct {
	Name     string // dotted from the document's top, a list's elements as name[]
	Was      string // its earlier name, at the top of a document alone
	Required bool
	Default  string
	Min, Max string
	OneOf    []string
	Like     string

	index int // of the struct's field
}

// Keys lists the keys of a document that is decoded into v, in the order of
// the fields, for documents that explain them.
func Keys(v any) []Key {
	return deepKeys(reflect.TypeOf(v), "")
}

func deepKeys(t reflect.Type, prefix string) []Key {
	var all []Key
	for _, k := range keysOf(t) {
		name := prefix + k.Name
		f := plainType(t.Field(k.index).Type)
		if f.Kind() == reflect.Slice && !isText(f) {
			f, name = plainType(f.Elem()), name+"[]"
		}
		if isMapping(f) {
			all = append(all, deepKeys(f, name+".")...)
			continue
		}
		k.Name = strings.TrimSuffix(name, "[]")
		all = append(all, k)
	}
	return all
}

// keysOf lists the keys of one mapping.
func keysOf(t reflect.Type) []Key {
	var keys []Key
	for i := range t.NumField() {
		tag := t.Field(i).Tag
		name := tag.Get("yaml")
		if name == "" {
			continue
		}
		keys = append(keys, Key{
			Name:     name,
			Was:      tag.Get("was"),
			Required: tag.Get("required") == "true",
			Default:  tag.Get("default"),
			Min:      tag.Get("min"),
			Max:      tag.Get("max"),
			OneOf:    strings.Fields(tag.Get("oneof")),
			Like:     tag.Get("like"),
			index:    i,
		})
	}
	return keys
}

// example ends a message: before is what comes before the example, if there
// is one.
func (k Key) example(before string) string {
	if k.Like == "" {
		return ""
	}
	return before + k.Like
}

// allows returns what is wrong with a word or duration that is not one of those
// allowed, and how to fix it.
func (k Key) allows(v reflect.Value) error {
	switch {
	case v.Type() == durationType:
		d := v.Interface().(time.Duration)
		if k.Min != "" && (d < mustDuration(k.Min) || d > mustDuration(k.Max)) {
			return fmt.Errorf("is out of range; use %s to %s", k.Min, k.Max)
		}
	case v.Kind() == reflect.Int && k.Min != "":
		if i := int(v.Int()); i < mustInt(k.Min) || i > mustInt(k.Max) {
			return fmt.Errorf("is out of range; use %s to %s", k.Min, k.Max)
		}
	case v.Kind() == reflect.String && len(k.OneOf) > 0:
		for _, word := range k.OneOf {
			if v.String() == word {
				return nil
			}
		}
		return fmt.Errorf("is not valid; use %s", strings.Join(k.OneOf, " or "))
	}
	return nil
}

// mustDuration parses a struct tag, which is part of the program.
func mustDuration(s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		panic(err)
	}
	return d
}

func mustInt(s string) int {
	i, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return i
}

// FormatDuration writes a duration as a document would: 1h30m, not 1h30m0s.
func FormatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	posType      = reflect.TypeFor[Pos]()
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
	sectionType  = reflect.TypeFor[Section]()
	sectionsType = reflect.TypeFor[Sections]()
	locatedType  = reflect.TypeFor[interface{ located() (any, *Pos) }]()
)

func isText(t reflect.Type) bool { return reflect.PointerTo(t).Implements(textType) }

func isLocated(t reflect.Type) bool { return reflect.PointerTo(t).Implements(locatedType) }

// isMapping reports whether a document has a mapping where t stands.
func isMapping(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && t != sectionType && !isText(t) && !isLocated(t)
}

// plainType takes the place off a located type.
func plainType(t reflect.Type) reflect.Type {
	if isLocated(t) {
		return t.Field(0).Type
	}
	return t
}
