package wire

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"golang.org/x/net/http2"
)

var ourToken = token{1, 2, 3, 4, 5, 6, 7, 8}

func isOurs(t token) bool { return t == ourToken }

// clientBytes is what a client might send, with n answers to challenges in it,
// and the same without them.
func clientBytes(r *rand.Rand, n int) (with, without []byte) {
	var b, rest bytes.Buffer
	b.WriteString(http2.ClientPreface)
	rest.WriteString(http2.ClientPreface)
	w, wrest := http2.NewFramer(&b, nil), http2.NewFramer(&rest, nil)
	both := func(write func(*http2.Framer)) { write(w); write(wrest) }
	both(func(f *http2.Framer) { f.WriteSettings() })
	for range n {
		w.WritePing(true, ourToken)
		switch size := r.IntN(40); r.IntN(6) {
		case 0:
			both(func(f *http2.Framer) { f.WriteData(1, false, make([]byte, size)) })
		case 1:
			both(func(f *http2.Framer) { f.WritePing(true, [8]byte{9}) })
		case 2:
			both(func(f *http2.Framer) { f.WritePing(false, ourToken) }) // a question, not an answer
		case 3: // looks like an answer, but is data
			f := pingFrame(ourToken)
			f[4] = flagAck
			both(func(fr *http2.Framer) { fr.WriteData(1, false, f[:]) })
		case 4:
			both(func(f *http2.Framer) { f.WriteSettingsAck() })
		}
	}
	return b.Bytes(), rest.Bytes()
}

func TestAnswersAreTakenOffHoweverTheStreamIsCut(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 2000 {
		n := r.IntN(10)
		with, without := clientBytes(r, n)
		src := &cutReader{b: with, r: r}
		got, answers := readThrough(t, src, r)
		if !bytes.Equal(got, without) {
			t.Fatalf("round %d: passed on\n%x, want\n%x", round, got, without)
		}
		if answers != n {
			t.Fatalf("round %d: found %d answers, want %d", round, answers, n)
		}
	}
}

// A cutReader returns a few bytes at a time.
type cutReader struct {
	b []byte
	r *rand.Rand
}

func (c *cutReader) Read(p []byte) (int, error) {
	if len(c.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.b[:min(len(c.b), 1+c.r.IntN(30))])
	c.b = c.b[n:]
	return n, nil
}

// readThrough reads as conn.Read does, into buffers of random size.
func readThrough(t *testing.T, src io.Reader, r *rand.Rand) (got []byte, answers int) {
	t.Helper()
	ours := func(tk token) bool {
		if isOurs(tk) {
			answers++
			return true
		}
		return false
	}
	in := newInbound()
	for {
		p := make([]byte, 1+r.IntN(64))
		if n := in.take(p); n > 0 {
			got = append(got, p[:n]...)
			continue
		}
		if missing := in.missing(); missing != nil {
			n, err := src.Read(missing)
			if err != nil {
				return got, answers
			}
			in.fill(n, ours)
			continue
		}
		n, err := src.Read(p)
		if err != nil {
			return got, answers
		}
		got = append(got, p[:in.filter(p[:n], ours)]...)
	}
}

func TestGapsAreBetweenFramesOnly(t *testing.T) {
	t.Parallel()
	// One line a frame: whether a PING may follow it.
	var b bytes.Buffer
	f := http2.NewFramer(&b, nil)
	f.AllowIllegalWrites = true
	var gaps []int
	gap := func(ok bool) {
		if ok {
			gaps = append(gaps, b.Len())
		}
	}
	f.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 16384})
	gap(true)
	f.WriteSettingsAck()
	gap(true)
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("xxx"), EndHeaders: true})
	gap(true)
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("xxx")})
	gap(false)
	f.WriteContinuation(1, false, nil)
	gap(false)
	f.WriteContinuation(1, true, []byte("xxx"))
	gap(true)
	f.WriteData(1, true, nil)
	gap(true)
	f.WriteData(1, true, make([]byte, 300))
	gap(true)
	f.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: []byte("x")})
	gap(false)
	f.WriteContinuation(1, true, nil)
	gap(true)
	f.WriteDataPadded(1, false, []byte("x"), make([]byte, 9))
	gap(true)
	f.WriteGoAway(0, 0, nil)
	gap(true)

	r := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		var o outbound
		var got []int
		if o.gap() {
			t.Fatal("a PING may be sent before the server's SETTINGS")
		}
		for p, at := b.Bytes(), 0; len(p) > 0; {
			cut := p[:min(len(p), 1+r.IntN(50))]
			n := o.advance(cut, true)
			if n == 0 {
				t.Fatal("advance takes nothing")
			}
			if at += n; o.gap() {
				got = append(got, at)
			} else if n < len(cut) {
				t.Fatalf("advance stops at %d, where no gap is", at)
			}
			p = p[n:]
		}
		if len(got) != len(gaps) {
			t.Fatalf("gaps at %v, want %v", got, gaps)
		}
		for i := range got {
			if got[i] != gaps[i] {
				t.Fatalf("gaps at %v, want %v", got, gaps)
			}
		}
		if o = (outbound{}); o.advance(b.Bytes(), false) != b.Len() || !o.gap() {
			t.Fatal("advance without stop does not reach the end")
		}
	}
}

// FuzzInbound: what is passed on does not depend on how it is cut, and a
// stream without answers passes unchanged.
func FuzzInbound(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 10 {
		with, _ := clientBytes(r, 5)
		f.Add(with, uint64(7))
	}
	f.Add([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x00\x00\x00\x00\x00\x00"), uint64(1))
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		whole, n := readThrough(t, bytes.NewReader(b), rand.New(rand.NewPCG(seed, 0)))
		cut, m := readThrough(t, &cutReader{b: b, r: rand.New(rand.NewPCG(seed, 1))}, rand.New(rand.NewPCG(seed, 2)))
		if !bytes.Equal(whole, cut) || n != m {
			t.Errorf("passed on %x with %d answers, and cut otherwise %x with %d", whole, n, cut, m)
		}
		if held := len(b) - len(whole) - n*pingFrameLen; held < 0 || held >= pingFrameLen {
			t.Errorf("%d bytes are held back", held)
		}
	})
}

// FuzzOutbound: a tracker fed in pieces knows what one fed whole does.
func FuzzOutbound(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x01\x01\x04\x00\x00\x00\x01x"), uint64(1))
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		var whole, cut outbound
		if n := whole.advance(b, false); n != len(b) {
			t.Fatalf("took %d bytes of %d", n, len(b))
		}
		r := rand.New(rand.NewPCG(seed, 0))
		for p := b; len(p) > 0; {
			p = p[cut.advance(p[:1+r.IntN(len(p))], r.IntN(2) == 0):]
		}
		if whole.gap() != cut.gap() || whole.have != cut.have || whole.payload != cut.payload {
			t.Errorf("whole: %+v, in pieces: %+v", whole, cut)
		}
	})
}
