package secret

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

const canary = "canary-4f1b"

func TestNoFormatShowsASecret(t *testing.T) {
	s := Of([]byte(canary))
	holder := struct {
		Exported Bytes
		pointer  *Bytes
		slice    []Bytes
	}{s, &s, []Bytes{s}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c", "%b", "%T"} {
		for _, v := range []any{s, &s, holder, holder.slice} {
			got := fmt.Sprintf(verb, v)
			for _, leak := range []string{canary, fmt.Sprintf("%x", canary), fmt.Sprint([]byte(canary))} {
				if strings.Contains(got, leak) {
					t.Errorf("Sprintf(%q) shows the secret: %s", verb, got)
				}
			}
		}
	}
	if got := fmt.Sprint(holder.pointer); got != placeholder {
		t.Errorf("Sprint of a pointer = %q, want %q", got, placeholder)
	}
}

func TestNoEncoderTakesASecret(t *testing.T) {
	s := Of([]byte(canary))
	if b, err := json.Marshal(struct{ S Bytes }{s}); err == nil {
		t.Errorf("json.Marshal = %s, want an error", b)
	}
	if err := gob.NewEncoder(new(bytes.Buffer)).Encode(s); err == nil {
		t.Error("gob encoded a secret")
	}
	for _, h := range []func(*bytes.Buffer) slog.Handler{
		func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		var out bytes.Buffer
		slog.New(h(&out)).Info("message", "secret", s, "held", struct{ S Bytes }{s})
		if strings.Contains(out.String(), canary) {
			t.Errorf("slog shows the secret: %s", out.String())
		}
	}
}

func TestEqualComparesTheBytes(t *testing.T) {
	if !Of([]byte("a")).Equal(Of([]byte("a"))) || Of([]byte("a")).Equal(Of([]byte("b"))) || Of([]byte("a")).Equal(Bytes{}) {
		t.Error("Equal does not compare the bytes")
	}
}
