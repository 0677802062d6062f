package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A Pos is a place in a configuration file. A struct that a document is decoded into,
// if it has a field of this type, gets its own position there.
type Pos struct {
	File   string
	Line   int // from 1; 0 means the file as a whole
	Column int // from 1, in characters; 0 where it is not known
}

// String returns file:line, as an [Entry] is named in records and messages.
func (p Pos) String() string {
	if p.Line == 0 {
		return p.File
	}
	return p.File + ":" + strconv.Itoa(p.Line)
}

// An At is a value together with the place it was read from, for checks that
// only the package that owns the value can make. Pos is zero where the file
// left the key out.
type At[T any] struct {
	Value T
	Pos   Pos
}

func (a *At[T]) located() (value any, pos *Pos) { return &a.Value, &a.Pos }

// An Error is one problem in one configuration file.
type Error struct {
	Pos
	Msg   string // what is wrong; how to fix it
	Other Pos    // of two places that contradict each other, the one that came first
}

// Error returns "file:line: what is wrong; how to fix it".
func (e *Error) Error() string { return e.Pos.String() + ": " + e.Msg }

// MaxErrors bounds how many problems one error reports; the last line counts
// the others.
const MaxErrors = 20

// Errors is every problem of one or more files. As an error it prints one
// problem a line, the first ones first.
type Errors []*Error

// Add notes a problem.
func (es *Errors) Add(pos Pos, format string, args ...any) {
	*es = append(*es, &Error{Pos: pos, Msg: fmt.Sprintf(format, args...)})
}

// AddBetween notes a problem of two places that contradict each other: either may be the
// wrong one.
func (es *Errors) AddBetween(pos, other Pos, format string, args ...any) {
	*es = append(*es, &Error{Pos: pos, Msg: fmt.Sprintf(format, args...), Other: other})
}

// AddErr notes the problems of an error, or the error itself as one of the file.
func (es *Errors) AddErr(file string, err error) {
	if found, ok := errors.AsType[Errors](err); ok {
		*es = append(*es, found...)
	} else if err != nil {
		es.Add(Pos{File: file}, "%v", err)
	}
}

// Err returns nil if there are no problems, otherwise the problems ordered by file
// and line.
func (es Errors) Err() error {
	if len(es) == 0 {
		return nil
	}
	sorted := slices.Clone(es)
	slices.SortStableFunc(sorted, func(a, b *Error) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return sorted
}

// Error returns the first [MaxErrors] problems, one a line.
func (es Errors) Error() string {
	var b strings.Builder
	for i, e := range es {
		if i == MaxErrors {
			fmt.Fprintf(&b, "\nand %d more", len(es)-i)
			break
		}
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(e.Error())
	}
	return b.String()
}

// Unwrap returns the problems one by one.
func (es Errors) Unwrap() []error {
	out := make([]error, len(es))
	for i, e := range es {
		out[i] = e
	}
	return out
}
