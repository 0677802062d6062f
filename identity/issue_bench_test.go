package identity_test

import (
	"testing"
	"time"

	"github.com/vouchd/vouchd/identity"
)

// BenchmarkIssueX509 makes a key and signs its certificate.
func BenchmarkIssueX509(b *testing.B) {
	a := newHost(b).start()
	for b.Loop() {
		if _, err := a.IssueX509(b.Context(), identity.Entry{ID: agent, X509TTL: time.Hour}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIssueJWT signs a token with the key in memory, and with one in the
// TPM.
func BenchmarkIssueJWT(b *testing.B) {
	h := newHost(b)
	for _, tt := range []struct {
		name   string
		change []func(*options)
	}{
		{"key=sealed", nil},
		{"key=tpm", []func(*options){h.keyInTPM}},
	} {
		a := h.start(tt.change...)
		b.Run(tt.name, func(b *testing.B) {
			for b.Loop() {
				if _, err := a.IssueJWT(b.Context(), identity.Entry{ID: agent, JWTTTL: time.Hour}, []string{"api"}, identity.With{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
