package gate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/connectivity"

	"github.com/vouchd/vouchd/identity"
)

// transportWith returns a transport for which user IDs from 100000 on are
// subordinate ones of user 1000.
func transportWith(t testing.TB, limits connLimits) *transport {
	t.Helper()
	subuid := filepath.Join(t.TempDir(), "subuid")
	if err := os.WriteFile(subuid, []byte("1000:100000:65536\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return newTransport(limits, newPersons(subuid), new(counters)).(*transport)
}

// take has people take places until each is refused, and returns how many they
// got.
func take(tr *transport, uids ...uint32) (places []*place) {
	for _, uid := range uids {
		for {
			p, err := tr.admit(1, uid)
			if err != nil {
				break
			}
			places = append(places, p)
		}
	}
	return places
}

func TestTwentySubordinateIDsHaveTheRoomOfOnePerson(t *testing.T) {
	t.Parallel()
	tr := transportWith(t, connLimits{total: 1000, each: 100, strangers: 500, eachOfThem: 10})
	uids := []uint32{1000}
	for i := range uint32(20) {
		uids = append(uids, 100000+i)
	}
	if got := len(take(tr, uids...)); got != 10 {
		t.Errorf("a person with 20 subordinate IDs has %d connections without an identity, want 10", got)
	}
}

func TestPeopleWithoutAnIdentityLeaveRoomForOthers(t *testing.T) {
	t.Parallel()
	tr := transportWith(t, connLimits{total: 100, each: 60, strangers: 50, eachOfThem: 40})
	if got := len(take(tr, 1, 2, 3, 4, 5)); got != 50 {
		t.Errorf("five people have %d connections, want 50", got)
	}
	if _, err := tr.admit(1, 6); err == nil {
		t.Error("a sixth is let in beside 50 without an identity")
	}
	if got := tr.limited.read().Connections; got != 6 {
		t.Errorf("%d refused connections are counted, want 6", got)
	}
}

func TestAPlaceIsGivenBackOnceWhetherItsProcessWasKnownOrNot(t *testing.T) {
	t.Parallel()
	tr := transportWith(t, connLimits{total: 100, each: 20, strangers: 50, eachOfThem: 10})
	for range 3 {
		places := take(tr, 7)
		for i, p := range places {
			if i%2 == 0 {
				p.know()
				p.know()
			}
		}
		if more := len(take(tr, 7)); more != 5 {
			t.Fatalf("%d more connections once 5 of 10 are known, want 5", more)
		}
		for _, of := range tr.people {
			if of.conns != 15 || of.strangers != 10 {
				t.Fatalf("%+v, want 15 connections of which 10 are strangers'", *of)
			}
		}
		tr = transportWith(t, tr.limits)
		for _, p := range take(tr, 7) {
			p.know()
			p.leave()
			p.know()
		}
		if tr.conns != 0 || tr.strangers != 0 || len(tr.people) != 0 {
			t.Fatalf("after all left: %d connections, %d of strangers, %d people", tr.conns, tr.strangers, len(tr.people))
		}
	}
}

func TestOnePersonsRequestsWaitForEachOther(t *testing.T) {
	t.Parallel()
	var all turns
	var done []func()
	for range turnsEach {
		d, err := all.take(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		done = append(done, d)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := all.take(ended, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("one more of the person: %v", err)
	}
	other, err := all.take(t.Context(), 2)
	if err != nil {
		t.Fatalf("another person: %v", err)
	}
	other()
	for _, d := range done {
		d()
	}
	if len(all.people) != 0 {
		t.Errorf("%d people are remembered after all is done", len(all.people))
	}
}

func TestAnIdentityThatAsksTooOftenIsRefusedAndAnotherIsNot(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	l := &ledger{now: func() time.Time { return now }, scarce: func() bool { return false }, identities: make(map[string]*spending)}
	for i := range answerBurst {
		if err := l.spend(entryOf("/a"), false); err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
	}
	if err := l.spend(entryOf("/a"), false); !errors.Is(err, ErrTooOften) {
		t.Errorf("an answer too many: %v", err)
	}
	if err := l.spend(entryOf("/b"), false); err != nil {
		t.Errorf("another identity: %v", err)
	}
	now = now.Add(time.Second)
	for range answersPerSecond {
		if err := l.spend(entryOf("/a"), false); err != nil {
			t.Errorf("a second later: %v", err)
		}
	}
}

func TestAnIdentityBeyondItsShareIsRefusedOnceTheLogIsHalfFull(t *testing.T) {
	t.Parallel()
	now, full := time.Unix(1e9, 0), false
	l := &ledger{
		share: Share{Bytes: 64 << 20, Keep: 90 * 24 * time.Hour},
		now:   func() time.Time { return now }, scarce: func() bool { return full }, identities: make(map[string]*spending),
	}
	share := 64 << 20 / shares / recordLen
	ask := func() error {
		now = now.Add(time.Second / answersPerSecond) // not too often
		return l.spend(entryOf("/a"), false)
	}
	for i := range 2 * share {
		if err := ask(); err != nil {
			t.Fatalf("answer %d while the log has room: %v", i, err)
		}
	}
	full = true
	if err := ask(); !errors.Is(err, ErrShare) {
		t.Errorf("once it is half full: %v", err)
	}
	if err := l.spend(entryOf("/b"), false); err != nil {
		t.Errorf("another identity: %v", err)
	}
	now = now.Add(l.share.Keep)
	if err := ask(); err != nil {
		t.Errorf("once its records are gone: %v", err)
	}
}

func entryOf(path string) []identity.Entry {
	return []identity.Entry{{ID: spiffeid.RequireFromPath(spiffeid.RequireTrustDomainFromString("example.org"), path)}}
}

func TestWhatIsRememberedIsBounded(t *testing.T) {
	t.Parallel()
	m := make(map[int]bool)
	for i := range 3 * maxKept {
		keep(m, i, i%2 == 0, func(idle bool) bool { return idle })
		if len(m) > maxKept {
			t.Fatalf("%d elements", len(m))
		}
	}
}

func TestAnAnswerIsGivenAgainToAProcessThatAsksTooOften(t *testing.T) {
	t.Parallel()
	var w windows
	key := windowKey{pid: 1, start: 2, event: "x"}
	for i := range repeatBurst {
		if _, again := w.again(key, "api"); again {
			t.Fatalf("request %d is answered again", i)
		}
		if kept := w.keep(key, "api", i, time.Now().Add(time.Hour)); kept != (i == repeatBurst-1) {
			t.Fatalf("answer %d is held: %v", i, kept)
		}
	}
	for i := range 5 {
		if v, again := w.again(key, "api"); !again || v != repeatBurst-1 {
			t.Fatalf("repeat %d: %v, %v", i, v, again)
		}
	}
	if _, again := w.again(key, "other"); again {
		t.Error("it is given for another audience")
	}
	other := key
	other.start = 3
	if _, again := w.again(other, "api"); again {
		t.Error("another process is given it")
	}
	if n := w.release(key, "api"); n != 5 {
		t.Errorf("it was given %d times, want 5", n)
	}
	if v, again := w.again(key, "api"); again {
		t.Errorf("once it is released: %v", v)
	}
	for i := range 2 * maxHeld {
		w.keep(key, fmt.Sprint(i), i, time.Now().Add(time.Hour))
	}
	if n := len(w.known[key].held); n != maxHeld {
		t.Errorf("%d answers are held", n)
	}
}

func TestWhatIsDueIsDoneAtTheEndAndOnce(t *testing.T) {
	t.Parallel()
	var l later
	done := make(chan int, 10)
	l.do(time.Hour, func() { done <- 1 })
	l.do(0, func() { done <- 2 })
	if n := <-done; n != 2 {
		t.Fatalf("%d was done", n)
	}
	l.close()
	if n := <-done; n != 1 || len(done) != 0 {
		t.Fatalf("%d was done at the end, and %d more", n, len(done))
	}
	l.do(time.Hour, func() { done <- 3 })
	if n := <-done; n != 3 {
		t.Fatalf("%d was done after the end", n)
	}
}

func TestAFirstRefusalOfEachPersonIsRecordedHoweverManyFlood(t *testing.T) {
	t.Parallel()
	r := newRefusals(Share{Bytes: 1, Keep: time.Hour}, func() bool { return true })
	for person := range uint32(30) {
		for range 2 * refusalBurst {
			r.allow(person)
		}
	}
	if ok, _ := r.allow(31); !ok {
		t.Error("the first refusal of another person is not recorded")
	}
	for range allRefusalBurst + refusalBurst {
		r.allow(32)
	}
	if ok, first := r.allow(32); ok || first || r.take(32) == 0 || r.take(32) != 0 {
		t.Error("what is not recorded is not counted")
	}
	if ok, first := r.allow(32); ok || !first {
		t.Error("it is not told that a new count begins")
	}
}

func BenchmarkLedger(b *testing.B) {
	l := &ledger{now: time.Now, scarce: func() bool { return false }, identities: make(map[string]*spending)}
	entries := make([][]identity.Entry, 100)
	for i := range entries {
		entries[i] = entryOf(fmt.Sprint("/", i))
	}
	for i := 0; b.Loop(); i++ {
		l.spend(entries[i%len(entries)], false)
	}
}

// A connection whose process is entitled to nothing does not last.
func TestAStrangersConnectionIsClosedAndAnothersStays(t *testing.T) {
	t.Parallel()
	limits := defaultConnLimits
	limits.strangerFor = 100 * time.Millisecond
	path := serveWith(t, limits, func(_ context.Context, c *Conn) error {
		c.conn.place.know()
		return nil
	})
	known := dial(t, path)
	if err := call(t.Context(), known); err != nil {
		t.Fatal(err)
	}
	stranger, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	stranger.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, stranger); err != nil {
		t.Fatalf("the stranger's connection is still open: %v", err)
	}
	if err := call(t.Context(), known); err != nil || known.GetState() != connectivity.Ready {
		t.Errorf("the other connection is %v: %v", known.GetState(), err)
	}
}
