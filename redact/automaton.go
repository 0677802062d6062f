package redact

import (
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"
)

// An automaton finds the end of every form of every secret in one pass. It is a
// deterministic one, made as far as the input needs it from a nondeterministic one of
// which every byte may be a beginning.
type automaton struct {
	edges   [][]edge // of each place; place 0 is before a form
	last    []bool   // of each place: a form ends there
	class   [256]uint8
	classes int
	longest int // bytes of the longest text of any form
	start   *state

	mu    sync.Mutex // guards the field below
	known map[string]*state
}

// An edge leads from one place to another by a byte.
type edge struct {
	by byte
	to uint32
}

// A state is the places that the input may be at.
type state struct {
	places []uint32 // sorted; without 0, where the input always is
	ends   bool     // a form ends here
	next   []atomic.Pointer[state]
}

// maxStates bounds the states that are kept. What needs more is found all the same.
const maxStates = 4096

// neither is the class of bytes that are in no form.
const neither = 0

// newAutomaton makes an automaton for forms.
func newAutomaton(forms []form) *automaton {
	a := &automaton{edges: make([][]edge, 1), last: make([]bool, 1), known: make(map[string]*state)}
	for _, f := range forms {
		a.add(f)
	}
	a.classify()
	a.start = a.stateOf(nil)
	return a
}

func (a *automaton) place() uint32 {
	a.edges = append(a.edges, nil)
	a.last = append(a.last, false)
	return uint32(len(a.edges) - 1)
}

// add adds the places of a form.
func (a *automaton) add(f form) {
	at, length := uint32(0), 0
	for _, ways := range f {
		to, most := a.place(), 0
		for _, way := range ways {
			a.way(at, to, way)
			most = max(most, len(way.bytes))
		}
		at = to
		length += most
	}
	a.last[at] = true
	a.longest = max(a.longest, length)
}

// way adds the places of one text between two others.
func (a *automaton) way(from, to uint32, t text) {
	for i := range len(t.bytes) {
		next := to
		if i < len(t.bytes)-1 {
			next = a.place()
		}
		for _, c := range cases(t.bytes[i], t.folds) {
			a.edges[from] = append(a.edges[from], edge{c, next})
		}
		from = next
	}
}

func cases(c byte, folds bool) []byte {
	switch {
	case folds && 'a' <= c && c <= 'z':
		return []byte{c, c - 'a' + 'A'}
	case folds && 'A' <= c && c <= 'Z':
		return []byte{c, c - 'A' + 'a'}
	}
	return []byte{c}
}

// classify gives a class to each byte that is in a form.
func (a *automaton) classify() {
	a.classes = 1
	for _, of := range a.edges {
		for _, e := range of {
			if a.class[e.by] == neither && a.classes < 256 {
				a.class[e.by] = uint8(a.classes)
				a.classes++
			}
		}
	}
}

// after returns the state after a byte.
func (a *automaton) after(s *state, b byte) *state {
	of := &s.next[a.class[b]]
	if t := of.Load(); t != nil {
		return t
	}
	t := a.stateOf(a.step(s.places, b))
	of.Store(t)
	return t
}

func (a *automaton) step(places []uint32, b byte) []uint32 {
	var to []uint32
	take := func(p uint32) {
		for _, e := range a.edges[p] {
			if e.by == b {
				to = append(to, e.to)
			}
		}
	}
	take(0)
	for _, p := range places {
		take(p)
	}
	slices.Sort(to)
	return slices.Compact(to)
}

// stateOf returns the state of a set of places.
func (a *automaton) stateOf(places []uint32) *state {
	key := make([]byte, 0, 4*len(places))
	for _, p := range places {
		key = binary.NativeEndian.AppendUint32(key, p)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.known[string(key)]; s != nil {
		return s
	}
	s := &state{places: places, next: make([]atomic.Pointer[state], a.classes)}
	for _, p := range places {
		s.ends = s.ends || a.last[p]
	}
	if len(a.known) < maxStates {
		a.known[string(key)] = s
	}
	return s
}

// begins returns where the longest form begins that ends at the end of b.
func (a *automaton) begins(b []byte) int {
	for from := max(0, len(b)-a.longest); from < len(b); from++ {
		if a.spans(b[from:]) {
			return from
		}
	}
	return len(b)
}

// spans reports whether a form is all of b.
func (a *automaton) spans(b []byte) bool {
	at, next := []uint32{0}, []uint32(nil)
	for _, c := range b {
		next = next[:0]
		for _, p := range at {
			for _, e := range a.edges[p] {
				if e.by == c {
					next = append(next, e.to)
				}
			}
		}
		if len(next) == 0 {
			return false
		}
		at, next = next, at
	}
	return slices.ContainsFunc(at, func(p uint32) bool { return a.last[p] })
}
