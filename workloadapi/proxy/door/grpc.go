package door

import (
	"encoding/binary"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// isGRPC reports whether the content of a request or a response is gRPC's messages.
func isGRPC(h http.Header) bool {
	kind, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	return kind == "application/grpc" || strings.HasPrefix(kind, "application/grpc+")
}

// endGRPC has a response that broke off end with a status of gRPC, in the trailers h. Its
// clients would take a reset stream for a fault of the proxy's. The upstream resets one
// whose timeout is over.
func endGRPC(h http.Header, timeout string, after time.Duration) {
	code, message := "14", "vouchd: the upstream's response broke off" // UNAVAILABLE
	if d, ok := grpcTimeout(timeout); ok && after >= d {
		code, message = "4", "vouchd: the time of the call is over" // DEADLINE_EXCEEDED
	}
	h.Set(http.TrailerPrefix+"Grpc-Status", code)
	h.Set(http.TrailerPrefix+"Grpc-Message", grpcMessage(message))
}

// grpcTimeout reads the header grpc-timeout: at most eight digits and a unit (gRPC over
// HTTP2, "Timeout").
func grpcTimeout(s string) (time.Duration, bool) {
	units := map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond}
	if len(s) < 2 || len(s) > 9 {
		return 0, false
	}
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
	unit, ok := units[s[len(s)-1]]
	return time.Duration(n) * unit, ok && err == nil
}

// grpcMessage encodes text for a header, as gRPC's clients decode it.
func grpcMessage(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// messages filters a stream of gRPC's messages ("Length-Prefixed-Message", gRPC over
// HTTP2), of which each is let go of whole: the other side may wait for it before it sends
// more. No secret spans two, for the second begins with a zero.
type messages struct {
	*screen
	head [5]byte
	have int    // bytes of head
	left uint32 // bytes of the message
}

// Write implements [io.Writer].
func (m *messages) Write(p []byte) (written int, err error) {
	for len(p) > 0 {
		n := 0
		if m.have < len(m.head) {
			n = copy(m.head[m.have:], p)
			if m.have += n; m.head[0] != 0 {
				return written, refuse(http.StatusBadGateway, "upstream_encoding", "a message is compressed, and cannot be searched for the credential")
			}
			m.left = binary.BigEndian.Uint32(m.head[1:])
		} else {
			n = int(min(uint64(m.left), uint64(len(p))))
			m.left -= uint32(n)
		}
		if _, err := m.screen.Write(p[:n]); err != nil {
			return written, err
		}
		p, written = p[n:], written+n
		if m.have < len(m.head) || m.left > 0 {
			continue
		}
		if err := m.Close(); err != nil || m.found() {
			return written, err // what was found ends it: a message has its length
		}
		m.have = 0
	}
	return written, nil
}
