package door

import (
	"bytes"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/vouchd/vouchd/credential/policy"
	"github.com/vouchd/vouchd/redact"
	"github.com/vouchd/vouchd/secret"
)

// TestMessageIsLetGoOfWhole: its end may be the beginning of a secret, and the other side
// waits for it.
func TestMessageIsLetGoOfWhole(t *testing.T) {
	t.Parallel()
	secrets, err := redact.Compile(secret.Of([]byte("sk-live-canary-7c1f9e42d8")))
	if err != nil {
		t.Fatal(err)
	}
	c := &call{secrets: secrets, policy: &policy.Policy{Shapes: policy.Mark}}
	first, second := "\x00\x00\x00\x00\x10tides: sk-live-c", "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02sk"
	for size := 1; size < 40; size++ {
		var got bytes.Buffer
		m := &messages{screen: c.screen(&got)}
		for _, message := range []string{first, second} {
			before := got.Len()
			for b := []byte(message); len(b) > 0; b = b[min(size, len(b)):] {
				if _, err := m.Write(b[:min(size, len(b))]); err != nil {
					t.Fatal(err)
				}
			}
			if got.Len() != before+len(message) {
				t.Fatalf("in pieces of %d, after %q there is %q", size, message, got.Bytes())
			}
		}
	}
	var got bytes.Buffer
	m := &messages{screen: c.screen(&got)}
	if _, err := m.Write([]byte("\x00\x00\x00\x00\x19sk-live-canary-7c1f9e42d8\x00")); err != nil || m.echoes.Count() != 1 || !m.found() || bytes.Contains(got.Bytes(), []byte("canary")) {
		t.Errorf("a secret passes as %q (%v)", got.Bytes(), err)
	}
	if _, err := (&messages{screen: c.screen(&got)}).Write([]byte("\x01\x00\x00\x00\x01x")); !errors.As(err, new(*refusal)) {
		t.Errorf("a compressed message is passed on (%v)", err)
	}
}

func TestAGRPCResponseThatBreaksOffEndsWithAStatus(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		timeout string
		after   time.Duration
		want    string
	}{
		{"", time.Hour, "14"},
		{"3S", 3 * time.Second, "4"}, {"3S", 2 * time.Second, "14"},
		{"2999906u", 3 * time.Second, "4"}, {"1H", time.Minute, "14"}, {"1M", time.Minute, "4"}, {"20m", time.Second, "4"}, {"99999999n", time.Second, "4"},
		{"S", time.Hour, "14"}, {"3", time.Hour, "14"}, {"-3S", time.Hour, "14"}, {"3s", time.Hour, "14"}, {"999999999n", time.Hour, "14"}, {"1.5S", time.Hour, "14"},
	} {
		h := make(http.Header)
		endGRPC(h, tt.timeout, tt.after)
		if got := h.Get(http.TrailerPrefix + "Grpc-Status"); got != tt.want {
			t.Errorf("with grpc-timeout %q after %v: status %s, want %s", tt.timeout, tt.after, got, tt.want)
		}
	}
}
