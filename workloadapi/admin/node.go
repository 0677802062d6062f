package admin

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// Node does what administrators request of the machine's TPM, which only the daemon uses.
// Documents are JSON; attest/node defines them. The asker is recorded before anything is done.
type Node struct {
	Evidence func(ctx context.Context, by Asker, nonce []byte) (json.RawMessage, error)                // for a verifier's nonce
	Activate func(ctx context.Context, by Asker, challenge []byte) (json.RawMessage, error)            // answers a verifier's challenge
	Attest   func(ctx context.Context) (json.RawMessage, error)                                        // appraises again; the attestation result
	Request  func(ctx context.Context, by Asker, nonce []byte) (json.RawMessage, error)                // asks to be enrolled; nil: a nonce of its own
	Agent    func(ctx context.Context, by Asker, nonce []byte) (json.RawMessage, error)                // asks for a certificate to join a SPIRE server with
	Install  func(ctx context.Context, by Asker, approval []byte, root string) (view.Enrolment, error) // root: SHA-256 in hexadecimal
	Reseal   func(ctx context.Context, by Asker, approval []byte) error                                // adds an approved boot state
}

const maxNodeRequest = 64 << 10 // bytes: an approval is the largest

func (n *Node) routes(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/node/evidence", withNonce(n.Evidence, true))
	mux.HandleFunc("POST /v1/node/request", withNonce(n.Request, false))
	mux.HandleFunc("POST /v1/node/agent-request", withNonce(n.Agent, false))
	mux.HandleFunc("POST /v1/node/activation", func(w http.ResponseWriter, r *http.Request) {
		answerTPM(w, r, n.Activate)
	})
	mux.HandleFunc("POST /v1/node/attest", func(w http.ResponseWriter, r *http.Request) {
		answerTPM(w, r, func(ctx context.Context, _ Asker, _ []byte) (json.RawMessage, error) { return n.Attest(ctx) })
	})
	mux.HandleFunc("POST /v1/node/enrolment", func(w http.ResponseWriter, r *http.Request) {
		root := r.URL.Query().Get("root_sha256")
		answerTPM(w, r, func(ctx context.Context, by Asker, approval []byte) (view.Enrolment, error) {
			return n.Install(ctx, by, approval, root)
		})
	})
	mux.HandleFunc("POST /v1/node/boot-state", func(w http.ResponseWriter, r *http.Request) {
		answerTPM(w, r, func(ctx context.Context, by Asker, approval []byte) (struct{}, error) {
			return struct{}{}, n.Reseal(ctx, by, approval)
		})
	})
}

// withNonce takes the nonce from the query.
func withNonce(do func(context.Context, Asker, []byte) (json.RawMessage, error), required bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		text := r.URL.Query().Get("nonce")
		nonce, err := hex.DecodeString(text)
		if err != nil || required && len(nonce) == 0 {
			http.Error(w, "the nonce is not hexadecimal", http.StatusBadRequest)
			return
		}
		if text == "" {
			nonce = nil
		}
		answerTPM(w, r, func(ctx context.Context, by Asker, _ []byte) (json.RawMessage, error) { return do(ctx, by, nonce) })
	}
}

// answerTPM answers with what do returns; documents as they are.
func answerTPM[T any](w http.ResponseWriter, r *http.Request, do func(context.Context, Asker, []byte) (T, error)) {
	ctx, cancel := tpmDeadline(w, r)
	defer cancel()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxNodeRequest))
	if err != nil {
		http.Error(w, fmt.Sprintf("reading the request: %v", err), http.StatusBadRequest)
		return
	}
	v, err := do(ctx, askerOf(r), body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	if document, ok := any(v).(json.RawMessage); ok {
		w.Header().Set("Content-Type", "application/json")
		w.Write(document)
		return
	}
	reply(w, v)
}

// tpmDeadline gives a request the time that a TPM may take.
func tpmDeadline(w http.ResponseWriter, r *http.Request) (context.Context, context.CancelFunc) {
	deadline := time.Now().Add(view.TPMTime)
	http.NewResponseController(w).SetWriteDeadline(deadline.Add(10 * time.Second))
	return context.WithDeadline(r.Context(), deadline)
}
