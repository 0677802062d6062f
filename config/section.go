package config

import (
	"reflect"

	"go.yaml.in/yaml/v3"
)

// A Section is a mapping whose keys another package knows: the settings of one
// credential broker among several. It was checked to be plain as all of the
// document is; the package that knows its keys decodes it.
type Section struct {
	Pos Pos // of its first key; zero where the document has no such section

	name string
	node *yaml.Node
}

// Sections are the sections of a mapping that belong to packages which are not
// known here: the names are given to [DecodeWith], and each section is as
// [Section.Name] says. A struct has at most one field of this type.
type Sections []Section

// Get returns the section of a name.
func (ss Sections) Get(name string) Section {
	for _, s := range ss {
		if s.name == name {
			return s
		}
	}
	return Section{}
}

// Name returns the key that the section is the value of.
func (s Section) Name() string { return s.name }

// Given reports whether the document has the section.
func (s Section) Given() bool { return s.node != nil }

// Decode decodes the section into v as [Decode] does a document, and reports
// problems in the document's lines.
func (s Section) Decode(v any) error {
	d := decoder{file: s.Pos.File}
	node := s.node
	if node == nil {
		node = &yaml.Node{Kind: yaml.MappingNode}
	}
	d.mapping(reflect.ValueOf(v).Elem(), node, s.name+".")
	return d.problems.Err()
}

func (d *decoder) section(v reflect.Value, n *yaml.Node, k Key) {
	if n.Kind != yaml.MappingNode {
		d.problems.Add(d.pos(n), "%s must be keys with values, and is %s", k.Name, kindName(n))
		return
	}
	s := Section{Pos: d.pos(n), name: k.Name, node: n}
	if v.Type() == sectionsType {
		v.Set(reflect.Append(v, reflect.ValueOf(s)))
		return
	}
	v.Set(reflect.ValueOf(s))
}
