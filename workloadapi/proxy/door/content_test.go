package door

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential/policy"
)

// looking returns a server and a policy whose rules look at content.
func looking(t *testing.T) (*server, *policy.Policy) {
	t.Helper()
	var doc struct {
		Proxy config.Section `yaml:"proxy"`
	}
	err := config.Decode("a.yaml", []byte(`proxy: {upstream: "https://api.example", slot: {header: X-Key, form: "{{value}}"}, rules: [{name: a, effect: allow, methods: [POST], paths: [/a], json: [{at: /model, one_of: [small]}]}]}`), &doc)
	if err != nil {
		t.Fatal(err)
	}
	p, err := policy.Load(doc.Proxy)
	if err != nil {
		t.Fatal(err)
	}
	return newServer(slog.New(slog.DiscardHandler)), p
}

// read sends content to a server that reads it for its rules, and returns the status.
func read(t *testing.T, s *server, p *policy.Policy, u *user, body io.Reader) int {
	t.Helper()
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		target, err := policy.ParseTarget(r.RequestURI, false)
		if err != nil {
			t.Error(err)
		}
		values, release, err := s.content(w, r, &conn{user: u}, p, target)
		if no := (*refusal)(nil); errors.As(err, &no) {
			w.WriteHeader(no.Status)
			return
		}
		if err != nil {
			t.Error(err)
			return
		}
		defer release()
		fmt.Fprint(w, values["/model"].Text)
	}))
	defer h.Close()
	resp, err := http.Post(h.URL+"/a", "application/json", body)
	if err != nil {
		return 0 // cut off
	}
	resp.Body.Close()
	return resp.StatusCode
}

func TestContentThatIsRefusedGivesBackWhatItHeld(t *testing.T) {
	t.Parallel()
	s, p := looking(t)
	s.contentTimeout = 10 * time.Second
	u := newUser()
	for range maxInspectedEach/maxInspected + 1 {
		long := io.MultiReader(strings.NewReader(strings.Repeat("x", maxInspected)), strings.NewReader("x")) // of unknown length
		if got := read(t, s, p, u, long); got != http.StatusRequestEntityTooLarge && got != 0 {
			t.Fatalf("too long: %d", got)
		}
	}
	if !u.inspected.TryAcquire(maxInspectedEach) || !s.inspected.TryAcquire(maxInspectedAll) {
		t.Error("something is still held")
	}
}

func TestContentThatDoesNotArriveIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	s, p := looking(t)
	s.contentTimeout = 50 * time.Millisecond
	u := newUser()
	r, w := io.Pipe()
	go io.WriteString(w, `{"model":`) // and no more
	defer w.Close()
	if got := read(t, s, p, u, r); got != http.StatusRequestTimeout && got != 0 {
		t.Errorf("status %d", got)
	}
	if !u.inspected.TryAcquire(maxInspectedEach) {
		t.Error("something is still held")
	}
}

func TestContentOfOneUserDoesNotKeepAnothersOut(t *testing.T) {
	t.Parallel()
	s, p := looking(t)
	s.contentTimeout = 10 * time.Second
	greedy, other := newUser(), newUser()
	for range maxInspectedEach / maxInspected {
		give, err := s.reserve(t.Context(), greedy, maxInspected)
		if err != nil {
			t.Fatal(err)
		}
		defer give(maxInspected)
	}
	if greedy.inspected.TryAcquire(1) {
		t.Error("one user may hold more than a share")
	}
	if got := read(t, s, p, other, strings.NewReader(`{"model":"small"}`)); got != http.StatusOK {
		t.Errorf("another user: status %d", got)
	}
}

func TestCallsOfOneUserAtATimeAreBounded(t *testing.T) {
	t.Parallel()
	s, _ := looking(t)
	u := newUser()
	u.requests.TryAcquire(maxRequestsEach)
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequestWithContext(context.WithValue(t.Context(), connKey{}, &conn{user: u}), "GET", "/a", nil))
	if w.Code != http.StatusTooManyRequests {
		t.Errorf("one too many: status %d", w.Code)
	}
	w = httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequestWithContext(context.WithValue(t.Context(), connKey{}, &conn{user: newUser()}), "GET", "/a", nil))
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("X-Vouchd") != "no_daemon" {
		t.Errorf("another user's: status %d", w.Code)
	}
}
