package wire

import "encoding/binary"

// What the transport knows of HTTP/2 (RFC 9113): where frames begin and end.
const (
	frameHeaderLen = 9
	pingLen        = 8
	pingFrameLen   = frameHeaderLen + pingLen
	clientPreface  = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" // §3.4

	frameHeaders      = 0x1
	framePushPromise  = 0x5
	framePing         = 0x6
	frameContinuation = 0x9

	flagAck        = 0x1
	flagEndHeaders = 0x4
)

// A token is the payload of a PING that asks the peer for a sign of life.
type token [pingLen]byte

func pingFrame(t token) (f [pingFrameLen]byte) {
	f[2] = pingLen
	f[3] = framePing
	copy(f[frameHeaderLen:], t[:])
	return f
}

// isPingAck reports whether a frame header is that of an answer to a PING.
func isPingAck(h []byte) bool {
	return h[0] == 0 && h[1] == 0 && h[2] == pingLen && h[3] == framePing &&
		h[4]&flagAck != 0 && binary.BigEndian.Uint32(h[5:])&^(1<<31) == 0
}

func payloadLen(h []byte) int { return int(h[0])<<16 | int(h[1])<<8 | int(h[2]) }

// An outbound tracks the frames that the server writes, however they are cut
// into writes, to find where another frame may be put between them.
type outbound struct {
	header  [frameHeaderLen]byte
	have    int  // bytes of header seen
	payload int  // bytes of payload to come
	block   bool // in a header block: only CONTINUATION may follow (§4.3)
	begun   bool // the first frame, the server's SETTINGS, is complete (§3.4)
}

// gap reports whether a frame may be put here.
func (o *outbound) gap() bool { return o.begun && !o.block && o.have == 0 && o.payload == 0 }

// advance follows p up to its end or, if stop is set, up to the first gap
// after at least one byte, and returns how many bytes it has taken.
func (o *outbound) advance(p []byte, stop bool) int {
	n := 0
	for n < len(p) {
		if o.payload > 0 {
			k := min(o.payload, len(p)-n)
			o.payload -= k
			n += k
		} else {
			k := copy(o.header[o.have:], p[n:])
			o.have += k
			n += k
			if o.have < frameHeaderLen {
				break
			}
			o.have = 0
			o.payload = payloadLen(o.header[:])
			o.enter(o.header[3], o.header[4])
		}
		if o.payload == 0 && o.have == 0 {
			o.begun = true
			if stop && o.gap() {
				break
			}
		}
	}
	return n
}

func (o *outbound) enter(kind, flags byte) {
	switch kind {
	case frameHeaders, framePushPromise, frameContinuation:
		o.block = flags&flagEndHeaders == 0
	}
}

// An inbound takes the answers to the daemon's own PINGs off the stream of
// frames that a client sends. It never holds more than one PING frame back,
// whatever lengths the client announces. What does not begin with the preface of
// HTTP/2 has no frames, and passes as it is.
type inbound struct {
	preface int  // bytes of it seen
	other   bool // it was not one
	passing int  // bytes that are of no interest: the preface, payloads
	have    int  // bytes in held
	held    [pingFrameLen]byte
	ready   bool // held[:have] is to be passed on
}

func newInbound() inbound { return inbound{} }

// framed reports whether what was seen so far begins as HTTP/2 does.
func (in *inbound) framed() bool { return in.preface > 0 && !in.other }

// begin follows the preface, and returns how many bytes of p are part of it.
func (in *inbound) begin(p []byte) int {
	n := 0
	for ; n < len(p) && !in.other && in.preface < len(clientPreface); n++ {
		if p[n] != clientPreface[in.preface] {
			in.other = true
			return n
		}
		in.preface++
	}
	return n
}

// missing returns the part of held that must be filled before anything more can be
// decided, or nil if nothing is held back.
func (in *inbound) missing() []byte {
	switch {
	case in.have == 0 || in.ready:
		return nil
	case in.have < frameHeaderLen:
		return in.held[in.have:frameHeaderLen]
	default:
		return in.held[in.have:]
	}
}

// fill takes n bytes that were put into missing.
func (in *inbound) fill(n int, ours func(token) bool) {
	in.have += n
	switch {
	case in.have < frameHeaderLen:
	case !isPingAck(in.held[:]):
		in.passing = payloadLen(in.held[:])
		in.ready = true
	case in.have < pingFrameLen:
	case ours(token(in.held[frameHeaderLen:])):
		in.have = 0
	default:
		in.ready = true
	}
}

// take moves bytes that were held back, and are to be passed on, to p.
func (in *inbound) take(p []byte) int {
	if !in.ready {
		return 0
	}
	n := copy(p, in.held[:in.have])
	in.have = copy(in.held[:], in.held[n:in.have])
	in.ready = in.have > 0
	return n
}

// filter takes the daemon's own answers out of p, in place, and returns how
// many bytes are left to be passed on. An incomplete frame header, or
// incomplete answer to a PING, at the end is held back. Nothing may be held
// when it is called.
func (in *inbound) filter(p []byte, ours func(token) bool) int {
	kept := in.begin(p)
	if in.other {
		return len(p)
	}
	rest := p[kept:]
	for len(rest) > 0 {
		n := min(in.passing, len(rest))
		in.passing -= n
		if n == 0 {
			switch {
			case len(rest) < frameHeaderLen,
				isPingAck(rest) && len(rest) < pingFrameLen:
				in.have = copy(in.held[:], rest)
				return kept
			case !isPingAck(rest):
				in.passing = payloadLen(rest)
				n = frameHeaderLen
			case ours(token(rest[frameHeaderLen:pingFrameLen])):
				rest = rest[pingFrameLen:]
				continue
			default:
				n = pingFrameLen
			}
		}
		kept += copy(p[kept:], rest[:n])
		rest = rest[n:]
	}
	return kept
}
