package wire

import (
	"testing"

	"golang.org/x/net/http2"

	"github.com/vouchd/vouchd/attest/process"
)

// BenchmarkTransport is what the transport adds to each read and write: a
// DATA frame comes in, one goes out.
func BenchmarkTransport(b *testing.B) {
	ours, theirs := socketpair(b)
	peer, err := process.PeerOf(ours)
	if err != nil {
		b.Fatal(err)
	}
	c, err := New(ours, peer, func() { peer.Close() })
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	frame := make([]byte, frameHeaderLen+1000)
	frame[1], frame[2] = 1000>>8, 1000&0xff
	if _, err := theirs.Write([]byte(http2.ClientPreface)); err != nil {
		b.Fatal(err)
	}
	in := make([]byte, 4096)
	if _, err := c.Read(in); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := theirs.Write(frame); err != nil {
			b.Fatal(err)
		}
		if n, err := c.Read(in); n != len(frame) || err != nil {
			b.Fatal(n, err)
		}
		if _, err := c.Write(frame); err != nil {
			b.Fatal(err)
		}
		if _, err := theirs.Read(in); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkChallenge is a challenge that is answered at once.
func BenchmarkChallenge(b *testing.B) {
	ours, theirs := socketpair(b)
	peer, err := process.PeerOf(ours)
	if err != nil {
		b.Fatal(err)
	}
	c, err := New(ours, peer, func() { peer.Close() })
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if _, err := theirs.Write([]byte(http2.ClientPreface)); err != nil {
		b.Fatal(err)
	}
	if _, err := c.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0}); err != nil { // SETTINGS
		b.Fatal(err)
	}
	go func() { // the server's reader
		for in := make([]byte, 4096); ; {
			if _, err := c.Read(in); err != nil {
				return
			}
		}
	}()
	go func() { // the client
		framer := http2.NewFramer(theirs, theirs)
		for {
			f, err := framer.ReadFrame()
			if err != nil {
				return
			}
			if p, ok := f.(*http2.PingFrame); ok {
				framer.WritePing(true, p.Data)
			}
		}
	}()
	b.ReportAllocs()
	for b.Loop() {
		wait, err := c.Challenge()
		if err != nil {
			b.Fatal(err)
		}
		if err := wait(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
