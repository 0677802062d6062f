package text

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// maxYAML bounds a document, whose nodes take a hundred times its length.
const maxYAML = 1 << 20

var errYAML = errors.New("it is no YAML")

// YAML reads the texts in documents of YAML. Aliases are not followed: what they stand
// for is read where it is written. An error comes with what stands before it.
func YAML(data []byte) ([]Leaf, error) {
	if len(data) > maxYAML {
		return nil, errLarge
	}
	y := yamlReader{data: data, lines: []int{0}}
	for i, c := range data {
		if c == '\n' {
			y.lines = append(y.lines, i+1)
		}
	}
	for dec := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var doc yaml.Node
		err := dec.Decode(&doc)
		switch {
		case errors.Is(err, io.EOF):
			return y.leaves, nil
		case err != nil:
			return y.leaves, errYAML // the parser's words have some of the text in them
		}
		if err := y.node(&doc, nil, 0); err != nil {
			return y.leaves, err
		}
	}
}

type yamlReader struct {
	data   []byte
	lines  []int // where each begins
	leaves []Leaf
}

func (y *yamlReader) node(n *yaml.Node, path []string, depth int) error {
	if depth > maxDepth || len(y.leaves) >= maxLeaves {
		return errLarge
	}
	path = path[:len(path):len(path)]
	switch n.Kind {
	case yaml.DocumentNode:
		for _, c := range n.Content {
			if err := y.node(c, path, depth+1); err != nil {
				return err
			}
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if err := y.node(n.Content[i+1], append(path, n.Content[i].Value), depth+1); err != nil {
				return err
			}
		}
	case yaml.SequenceNode:
		for i, c := range n.Content {
			if err := y.node(c, append(path, strconv.Itoa(i)), depth+1); err != nil {
				return err
			}
		}
	case yaml.ScalarNode:
		start, end := y.place(n)
		y.leaves = append(y.leaves, Leaf{append([]string(nil), path...), []byte(n.Value), start, end})
	}
	return nil
}

// place returns where a scalar is written. Of a block only where it begins is known, and
// its end is the same.
func (y *yamlReader) place(n *yaml.Node) (start, end int) {
	if n.Line < 1 || n.Line > len(y.lines) {
		return 0, 0
	}
	at := y.lines[n.Line-1]
	for range n.Column - 1 {
		if at >= len(y.data) {
			return 0, 0
		}
		_, size := utf8.DecodeRune(y.data[at:])
		at += size
	}
	switch n.Style &^ yaml.TaggedStyle {
	case yaml.DoubleQuotedStyle, yaml.SingleQuotedStyle:
		if i := bytes.IndexAny(y.data[at:lineEnd(y.data, at)], `"'`); i >= 0 {
			at += i + 1
		}
		if bytes.HasPrefix(y.data[at:], []byte(n.Value)) {
			return at, at + len(n.Value)
		}
		if i := closing(y.data, at-1); at > 0 && i >= 0 {
			return at, i
		}
	case 0:
		if n.Value != "" && bytes.HasPrefix(y.data[at:], []byte(n.Value)) {
			return at, at + len(n.Value)
		}
	}
	return at, at
}
