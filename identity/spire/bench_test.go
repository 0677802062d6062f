package spire_test

import (
	"fmt"
	"testing"

	"github.com/vouchd/vouchd/identity/spire"
	"github.com/vouchd/vouchd/identity/spire/spiretest"
)

// BenchmarkEntryToSVID is from an entry's being created at the server to its SVID.
func BenchmarkEntryToSVID(b *testing.B) {
	spire.AsShipped()
	s := spiretest.New(b, "example.org")
	h := newHost(b, s).start()
	eventually(b, "it is attested", func() bool { return h.State().Online })
	n := 0
	for b.Loop() {
		n++
		path := fmt.Sprintf("/agent/%d", n)
		s.Add(s.Entry(path, "unix:uid:0"))
		h.served(path)
	}
}

// BenchmarkStartWithoutTheServer is from a start to an SVID, with as many entries whose SVIDs
// are kept.
func BenchmarkStartWithoutTheServer(b *testing.B) {
	for _, entries := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(entries), func(b *testing.B) {
			s := spiretest.New(b, "example.org")
			for i := range entries {
				s.Add(s.Entry(fmt.Sprintf("/agent/%d", i), "unix:uid:0"))
			}
			h := newHost(b, s).start()
			eventually(b, "each has an SVID", func() bool { return h.log.count("sign ") == entries })
			h.stop()
			s.Stop()
			for b.Loop() {
				h.open()
				if _, err := h.IssueX509(b.Context(), h.entries()["/agent/0"]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkIssue is of what the server has signed already.
func BenchmarkIssue(b *testing.B) {
	s := spiretest.New(b, "example.org")
	s.Add(s.Entry("/agent", "unix:uid:0"))
	h := newHost(b, s).start()
	h.served("/agent")
	e := h.entries()["/agent"]
	for b.Loop() {
		if _, err := h.IssueX509(b.Context(), e); err != nil {
			b.Fatal(err)
		}
	}
}
