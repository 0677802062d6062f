package spire_test

import (
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vouchd/vouchd/identity/spire"
	"github.com/vouchd/vouchd/identity/spire/spiretest"
)

// BenchmarkFleet is of hosts and server in one process, whose time is that of both.
func BenchmarkFleet(b *testing.B) {
	s := spiretest.New(b, "example.org")
	fleet(b, ours{s}, func() time.Duration {
		var u syscall.Rusage
		must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	})
}

// A counter passes connections on to an address, and knows when they came.
type counter struct {
	mu   sync.Mutex
	came []time.Time
}

func (c *counter) listen(t testing.TB, to string) (address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			down, err := l.Accept()
			if err != nil {
				return
			}
			c.mu.Lock()
			c.came = append(c.came, time.Now())
			c.mu.Unlock()
			up, err := net.Dial("tcp", to)
			if err != nil {
				down.Close()
				continue
			}
			go func() { io.Copy(up, down); up.(*net.TCPConn).CloseWrite() }()
			go func() { io.Copy(down, up); down.Close(); up.Close() }()
		}
	}()
	return l.Addr().String()
}

// peak is the most that came in a second since some time.
func (c *counter) peak(since time.Time) (most int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	came := slices.DeleteFunc(slices.Clone(c.came), func(t time.Time) bool { return t.Before(since) })
	for first, last := 0, 0; last < len(came); last++ {
		for came[last].Sub(came[first]) > time.Second {
			first++
		}
		most = max(most, last-first+1)
	}
	return most
}

// fleet is a thousand hosts of one server: what they cost it as long as nothing happens, and
// how they come back after it was away for half a minute.
func fleet(b *testing.B, s server, cpu func() time.Duration) {
	const (
		size   = 1000
		arrive = 20 * time.Millisecond
		steady = 20 * time.Second
		outage = 30 * time.Second
	)
	spire.AsShipped()
	s.Add(entryFor("/agent", "unix:uid:0"))
	var connections counter
	address := connections.listen(b, s.address())
	hosts := make([]*host, size)
	for i := range hosts {
		hosts[i] = newHostOf(b, s)
		hosts[i].change = func(o *spire.Options) { o.Server = address }
		hosts[i].start()
		time.Sleep(arrive) // attesting costs more than all else
	}
	online := func() (n int) {
		for _, h := range hosts {
			if st := h.State(); st.Online && !st.LastSync.IsZero() {
				n++
			}
		}
		return n
	}
	within := func(what string, n int) time.Duration {
		begun := time.Now()
		for online() < n {
			if time.Since(begun) > 5*time.Minute {
				b.Fatalf("%d hosts are online, and not %d: %s: %+v", online(), n, what, hosts[0].State())
			}
			time.Sleep(100 * time.Millisecond)
		}
		return time.Since(begun)
	}
	within("at first", size)
	for b.Loop() {
		last := make([]time.Time, size)
		syncs := -size // the first look tells nothing
		before := cpu()
		for begun := time.Now(); time.Since(begun) < steady; time.Sleep(time.Second) {
			for i, h := range hosts {
				if at := h.State().LastSync; !at.Equal(last[i]) {
					last[i] = at
					syncs++
				}
			}
		}
		b.ReportMetric(float64(syncs)/steady.Seconds(), "syncs/s")
		b.ReportMetric((cpu()-before).Seconds()/steady.Seconds(), "cpus")

		s.Stop()
		time.Sleep(outage)
		s.Start()
		back := time.Now()
		half := within("after it was away", size/2)
		all := within("after it was away", size) + half
		b.ReportMetric(half.Seconds(), "half-back-s")
		b.ReportMetric(all.Seconds(), "all-back-s")
		b.ReportMetric(float64(connections.peak(back)), "most-connections/s")
	}
}
