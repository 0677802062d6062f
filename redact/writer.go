package redact

import (
	"fmt"
	"io"
)

// A Writer passes on what is written to it, without the secrets. The last bytes stay with
// it until enough others follow, or one that ends what could be a secret.
type Writer struct{ *stream } // behind a pointer, which fmt does not follow

type stream struct {
	a     *automaton
	to    io.Writer
	at    uint32
	held  []byte // not passed on yet
	open  int    // bytes of held up to which a mark stands for what was before
	found []span // in held, in order and apart
	out   []byte // what passes, where marks are in it
	count int
	err   error
}

// A span is a part of what is held.
type span struct{ from, to int }

// atOnce bounds what is looked at before it passes.
const atOnce = 32 << 10

// Writer returns a writer to s.
func (s *Secrets) Writer(w io.Writer) *Writer { return &Writer{&stream{a: s.a, to: w}} }

// Reset makes it a new writer to w, and forgets what it held.
func (s *stream) Reset(w io.Writer) {
	clear(s.held[:cap(s.held)])
	clear(s.out[:cap(s.out)])
	*s = stream{a: s.a, to: w, held: s.held[:0], found: s.found[:0], out: s.out[:0]}
}

// Count returns how many secrets were taken out.
func (s *stream) Count() int { return s.count }

// Format keeps what is held from being printed.
func (s *stream) Format(f fmt.State, _ rune) { io.WriteString(f, "[redacting writer]") }

// Write implements [io.Writer].
func (s *stream) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 && s.err == nil {
		n := min(len(p), atOnce)
		s.look(p[:n])
		p = p[n:]
		written += n
	}
	return written, s.err
}

// look takes what comes next, and passes on what can be no part of a secret.
func (s *stream) look(p []byte) {
	a, at := s.a, s.at
	from := len(s.held)
	s.held = append(s.held, p...)
	for i, b := range p {
		to := a.table[at+uint32(b)]
		if uint32(to) != at {
			to = a.start[b]
		}
		if at = uint32(to >> 32); at >= a.accept {
			s.find(from+i+1, at)
		}
	}
	s.at = at
	end := len(s.held) - max(0, a.longest-1)
	for i := len(s.held) - 1; i >= max(from, end); i-- {
		if a.passes[s.held[i]] {
			end = i + 1
			break
		}
	}
	s.pass(end)
}

// Flush flushes what was passed on, if the writer below can be flushed. What is held
// stays held: whoever can time a flush could otherwise have a secret pass in two halves.
func (s *stream) Flush() error {
	switch to := s.to.(type) {
	case interface{ Flush() error }:
		if s.err == nil {
			s.err = to.Flush()
		}
	case interface{ Flush() }:
		to.Flush()
	}
	return s.err
}

// Close passes on the rest. It does not close what is written to. What is written after
// it is a text of its own, as a message is.
func (s *stream) Close() error {
	s.pass(len(s.held))
	s.at = 0
	return s.err
}

// find notes the secret that ends there. One that overlaps another is one with it.
func (s *stream) find(end int, at uint32) {
	of := span{s.a.begins(s.held[:end], at), end}
	for n := len(s.found); n > 0 && s.found[n-1].to > of.from; n-- {
		of.from = min(of.from, s.found[n-1].from)
		s.tally(s.found[n-1], -1)
		s.found = s.found[:n-1]
	}
	s.found = append(s.found, of)
	s.tally(of, 1)
}

// tally counts what gets a mark of its own.
func (s *stream) tally(of span, n int) {
	if of.from >= s.open {
		s.count += n
	}
}

// pass passes on what is held up to there, with marks for what was found in it.
func (s *stream) pass(end int) {
	if end <= 0 || s.err != nil {
		return
	}
	if len(s.found) == 0 && s.open == 0 {
		s.write(s.held[:end])
	} else {
		s.passMarked(end)
	}
	n := copy(s.held, s.held[end:])
	clear(s.held[n:])
	s.held = s.held[:n]
}

func (s *stream) passMarked(end int) {
	s.out = s.out[:0]
	at, n := min(s.open, end), 0 // before at, a mark stands already
	for ; n < len(s.found) && s.found[n].from < end; n++ {
		f := s.found[n]
		if f.from >= s.open {
			s.out = append(s.out, s.held[at:f.from]...)
			s.out = append(s.out, Mark...)
		}
		at, s.open = f.to, f.to
	}
	s.write(append(s.out, s.held[min(at, end):end]...))
	s.open = max(0, s.open-end)
	s.found = s.found[:copy(s.found, s.found[n:])]
	for i := range s.found {
		s.found[i].from -= end
		s.found[i].to -= end
	}
}

func (s *stream) write(b []byte) {
	if len(b) > 0 && s.err == nil {
		_, s.err = s.to.Write(b)
	}
}
