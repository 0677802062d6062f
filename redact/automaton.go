package redact

import (
	"cmp"
	"encoding/binary"
	"errors"
	"math"
	"slices"
)

// An automaton finds the end of every form of every secret in one pass. It is a
// deterministic one, made whole before it is used: each byte costs one step, which does
// the same whether the byte goes on with a secret or not.
//
// Nearly all bytes lead from any state to where they lead from the start. The others are
// slots of one table, in which a state's number plus the byte is the place of its slot,
// and a slot names the state it belongs to. States share the table because each has few.
type automaton struct {
	start [256]slot // by which byte: where it leads from the start, and from most states
	table []slot
	ends  map[uint32][]uint32 // of states from accept up: the places where forms end
	// Numbers from here on are those of states in which a form ends.
	accept  uint32
	longest int       // bytes of the longest text of any form
	passes  [256]bool // a byte with which all before it passes; see [separator]

	into  []edge   // the edges by where they lead to, to go back to where a form begins
	first []uint32 // of each place: the first of its edges in into
}

// A slot is the number of the state it belongs to and, above it, of the next.
type slot uint64

const nobody = math.MaxUint32 // owns what is free

// An edge leads from one place in a form to another by a byte, or its other case. Place 0
// is before a form.
type edge struct {
	from, to uint32
	by, or   byte
}

// maxPlaces bounds the places of all states together, and so the time and memory to make
// them. A random secret takes some 30 for each of its bytes.
const maxPlaces = 1 << 20

var errTooManyPlaces = errors.New("the secrets are too many, or repeat themselves too much, to be searched for; make them random")

// newAutomaton makes an automaton for forms.
func newAutomaton(forms []form) (*automaton, error) {
	var n network
	n.place()
	for _, f := range forms {
		n.add(f)
	}
	a := &automaton{longest: n.longest, ends: make(map[uint32][]uint32)}
	for b := range a.passes {
		a.passes[b] = separator(byte(b)) && !slices.ContainsFunc(n.edges, func(e edge) bool { return e.by == byte(b) })
	}
	states, err := n.determine()
	if err != nil {
		return nil, err
	}
	a.pack(states)
	slices.SortFunc(n.edges, func(x, y edge) int { return cmp.Compare(x.to, y.to) })
	a.into, a.first = n.edges, index(n.edges, n.places, func(e edge) uint32 { return e.to })
	return a, nil
}

func (a *automaton) size() int {
	return 8*len(a.table) + 12*len(a.into) + 4*len(a.first)
}

// separator is the bytes that let all before them pass, if no form has them. They are the
// same for nearly all secrets: if it was any byte that a secret has not, what passes when
// would tell which letters it has.
func separator(b byte) bool { return b < ' ' }

// A network is the forms as a nondeterministic automaton.
type network struct {
	edges   []edge
	places  uint32
	last    []uint32 // the places where forms end
	longest int
}

func (n *network) place() uint32 {
	n.places++
	return n.places - 1
}

// add adds the places of a form.
func (n *network) add(f form) {
	at, length := make([]uint32, len(f)+1), make([]int, len(f)+1)
	for i := range f {
		at[i+1] = n.place()
	}
	for i, ways := range f {
		for _, way := range ways {
			to := i + 1 + way.more
			n.way(at[i], at[to], way)
			length[to] = max(length[to], length[i]+len(way.bytes))
		}
	}
	n.last = append(n.last, at[len(f)])
	n.longest = max(n.longest, length[len(f)])
}

// way adds the places of one text between two others.
func (n *network) way(from, to uint32, t text) {
	for i := range len(t.bytes) {
		next := to
		if i < len(t.bytes)-1 {
			next = n.place()
		}
		e := edge{from, next, t.bytes[i], t.bytes[i]}
		if t.folds {
			e.or = otherCase(e.by)
		}
		n.edges = append(n.edges, e)
		from = next
	}
}

func otherCase(c byte) byte {
	if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' {
		return c ^ 0x20
	}
	return c
}

// index returns where the edges of each place begin in edges that are sorted by place.
func index(edges []edge, places uint32, of func(edge) uint32) []uint32 {
	first := make([]uint32, places+1)
	for _, e := range edges {
		first[of(e)+1]++
	}
	for i := range places {
		first[i+1] += first[i]
	}
	return first
}

// A state is a set of places at which the input may be.
type state struct {
	places []uint32 // sorted; without 0, where the input always is
	ends   []uint32 // those of them where a form ends
	moves  []move   // of the first state all, of others where they differ from it; by byte
}

// A move leads to another state, by its index.
type move struct {
	by byte
	to int
}

// determine returns the states, the first one first.
func (n *network) determine() ([]state, error) {
	slices.SortFunc(n.edges, func(x, y edge) int { return cmp.Compare(x.from, y.from) })
	d := determiner{network: n, first: index(n.edges, n.places, func(e edge) uint32 { return e.from }), known: make(map[string]int)}
	d.last = make([]bool, n.places)
	for _, p := range n.last {
		d.last[p] = true
	}
	d.stateOf(nil)
	for i := 0; i < len(d.states); i++ {
		d.moves(i)
		if d.total > maxPlaces {
			return nil, errTooManyPlaces
		}
	}
	return d.states, nil
}

type determiner struct {
	*network
	first  []uint32 // of each place: the first of its edges
	last   []bool   // of each place: a form ends there
	states []state
	known  map[string]int // states by their places
	total  int            // places of all states

	hops       []hop
	places     []uint32
	key        []byte
	fromTheTop [256][]uint32 // where each byte leads from place 0
}

// A hop is a place that a byte leads to.
type hop struct {
	by byte
	to uint32
}

// moves finds the moves of a state.
func (d *determiner) moves(i int) {
	d.hops = d.hops[:0]
	if i == 0 {
		d.hop(0)
	}
	for _, p := range d.states[i].places {
		d.hop(p)
	}
	slices.SortFunc(d.hops, func(x, y hop) int { return cmp.Or(cmp.Compare(x.by, y.by), cmp.Compare(x.to, y.to)) })
	var found []move
	for rest := d.hops; len(rest) > 0; {
		by := rest[0].by
		d.places = append(d.places[:0], d.fromTheTop[by]...)
		for len(rest) > 0 && rest[0].by == by {
			d.places = append(d.places, rest[0].to)
			rest = rest[1:]
		}
		slices.Sort(d.places)
		d.places = slices.Compact(d.places)
		if i == 0 {
			d.fromTheTop[by] = slices.Clone(d.places)
		}
		found = append(found, move{by, d.stateOf(d.places)})
	}
	d.states[i].moves = found
}

func (d *determiner) hop(p uint32) {
	for _, e := range d.edges[d.first[p]:d.first[p+1]] {
		d.hops = append(d.hops, hop{e.by, e.to})
		if e.or != e.by {
			d.hops = append(d.hops, hop{e.or, e.to})
		}
	}
}

// stateOf returns the index of the state of a set of places.
func (d *determiner) stateOf(places []uint32) int {
	d.key = d.key[:0]
	for _, p := range places {
		d.key = binary.NativeEndian.AppendUint32(d.key, p)
	}
	if i, ok := d.known[string(d.key)]; ok {
		return i
	}
	s := state{places: slices.Clone(places)}
	for _, p := range places {
		if d.last[p] {
			s.ends = append(s.ends, p)
		}
	}
	d.total += len(places)
	d.states = append(d.states, s)
	d.known[string(d.key)] = len(d.states) - 1
	return len(d.states) - 1
}

// pack numbers the states so that no two slots meet, and fills the table. States in which
// a form ends get the highest numbers.
func (a *automaton) pack(states []state) {
	number := make([]uint32, len(states))
	var taken []bool // slots
	next := uint32(1)
	fit := func(s state) uint32 {
		for n := next; ; n++ {
			for int(n)+256 > len(taken) {
				taken = append(taken, make([]bool, len(taken)+256)...)
			}
			if slices.ContainsFunc(s.moves, func(m move) bool { return taken[n+uint32(m.by)] }) {
				continue
			}
			for _, m := range s.moves {
				taken[n+uint32(m.by)] = true
			}
			next = n + 1
			return n
		}
	}
	for i, s := range states {
		if i > 0 && len(s.ends) == 0 {
			number[i] = fit(s)
		}
	}
	a.accept = next
	for i, s := range states {
		if len(s.ends) > 0 {
			number[i] = fit(s)
			a.ends[number[i]] = s.ends
		}
	}
	a.table = make([]slot, next+256)
	for i := range a.table {
		a.table[i] = nobody
	}
	for _, m := range states[0].moves {
		a.start[m.by] = slot(number[m.to]) << 32
	}
	for i, s := range states[1:] {
		for _, m := range s.moves {
			n := number[i+1]
			a.table[n+uint32(m.by)] = slot(number[m.to])<<32 | slot(n)
		}
	}
}

// begins returns where the longest form begins that ends at the end of b, in state s.
func (a *automaton) begins(b []byte, s uint32) int {
	at, next := slices.Clone(a.ends[s]), []uint32(nil)
	begin := len(b)
	for i := len(b) - 1; i >= 0 && len(at) > 0; i-- {
		next = next[:0]
		for _, p := range at {
			for _, e := range a.into[a.first[p]:a.first[p+1]] {
				switch {
				case e.by != b[i] && e.or != b[i]:
				case e.from == 0:
					begin = i
				default:
					next = append(next, e.from)
				}
			}
		}
		slices.Sort(next)
		at, next = slices.Compact(next), at
	}
	return begin
}
