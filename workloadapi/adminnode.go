package workloadapi

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// A NodeAdmin does what administrators ask of the machine's TPM, which the
// daemon has to itself. Documents are JSON; attest/node defines them. Who asks
// is recorded before anything is done.
type NodeAdmin struct {
	Evidence func(ctx context.Context, by Asker, nonce []byte) (json.RawMessage, error)               // for a verifier's nonce
	Activate func(ctx context.Context, by Asker, challenge []byte) (json.RawMessage, error)           // answers a verifier's challenge
	Attest   func(ctx context.Context) (json.RawMessage, error)                                       // appraises anew; the attestation result
	Request  func(ctx context.Context, by Asker, nonce []byte) (json.RawMessage, error)               // asks to be enrolled; nil: a nonce of its own
	Install  func(ctx context.Context, by Asker, approval []byte, root string) (EnrolmentView, error) // root: SHA-256 in hexadecimal
	Reseal   func(ctx context.Context, by Asker, approval []byte) error                               // adds an approved boot state
}

// An Asker is the process that connected to the admin socket, by the kernel's
// word. The process may have passed the connection on; its user is what
// counts.
type Asker struct {
	PID      int
	UID, GID uint32
}

// An EnrolmentView says whose certificate the node has.
type EnrolmentView struct {
	TrustDomain string    `json:"trust_domain"`
	RootSHA256  string    `json:"root_sha256"` // of the root's certificate (DER), hexadecimal
	Serial      string    `json:"serial"`      // of the node's CA certificate, hexadecimal
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"` // of the chain's first to end
	InForce     bool      `json:"in_force"`  // whether this daemon issues under it
}

// A NodeStatus says whether the machine satisfies its appraisal policy.
type NodeStatus struct {
	State     string          `json:"state"` // NodePassed, NodeFailed, NodeUnknown or NodeNotAppraised
	Policy    string          `json:"policy"`
	Checked   time.Time       `json:"checked,omitzero"` // when it was last appraised
	Evidence  string          `json:"evidence_sha256,omitempty"`
	Selectors []string        `json:"selectors"` // what entries can ask of the node
	Result    json.RawMessage `json:"result,omitempty"`
	Bound     bool            `json:"keys_bound"` // to approved boot states
	Enrolment *EnrolmentView  `json:"enrolment,omitempty"`
}

// The states of a node.
const (
	NodePassed       = "passed"
	NodeFailed       = "failed"        // issues nothing
	NodeUnknown      = "unknown"       // has a policy and no appraisal could be made: issues nothing
	NodeNotAppraised = "not appraised" // has no policy
)

const (
	maxNodeRequest = 64 << 10        // bytes: an approval is the largest
	nodeTimeout    = 3 * time.Minute // a TPM on a slow bus takes most of a minute for one key
)

func (n *NodeAdmin) routes(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/node/evidence", withNonce(n.Evidence, true))
	mux.HandleFunc("POST /v1/node/request", withNonce(n.Request, false))
	mux.HandleFunc("POST /v1/node/activation", func(w http.ResponseWriter, r *http.Request) {
		answerNode(w, r, n.Activate)
	})
	mux.HandleFunc("POST /v1/node/attest", func(w http.ResponseWriter, r *http.Request) {
		answerNode(w, r, func(ctx context.Context, _ Asker, _ []byte) (json.RawMessage, error) { return n.Attest(ctx) })
	})
	mux.HandleFunc("POST /v1/node/enrolment", func(w http.ResponseWriter, r *http.Request) {
		root := r.URL.Query().Get("root_sha256")
		answerNode(w, r, func(ctx context.Context, by Asker, approval []byte) (EnrolmentView, error) {
			return n.Install(ctx, by, approval, root)
		})
	})
	mux.HandleFunc("POST /v1/node/boot-state", func(w http.ResponseWriter, r *http.Request) {
		answerNode(w, r, func(ctx context.Context, by Asker, approval []byte) (struct{}, error) {
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
		answerNode(w, r, func(ctx context.Context, by Asker, _ []byte) (json.RawMessage, error) { return do(ctx, by, nonce) })
	}
}

// answerNode answers with what do returns; documents as they are.
func answerNode[T any](w http.ResponseWriter, r *http.Request, do func(context.Context, Asker, []byte) (T, error)) {
	deadline := time.Now().Add(nodeTimeout)
	http.NewResponseController(w).SetWriteDeadline(deadline.Add(10 * time.Second))
	ctx, cancel := context.WithDeadline(r.Context(), deadline)
	defer cancel()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxNodeRequest))
	if err != nil {
		http.Error(w, fmt.Sprintf("reading the request: %v", err), http.StatusBadRequest)
		return
	}
	by, _ := ctx.Value(askerKey{}).(Asker)
	v, err := do(ctx, by, body)
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

// askerKey is the connection's [Asker] in a request's context.
type askerKey struct{}

// NodeEvidence returns evidence for a nonce.
func (c *AdminClient) NodeEvidence(ctx context.Context, nonce []byte) ([]byte, error) {
	return post[json.RawMessage](ctx, c, "/v1/node/evidence", nonceQuery(nonce), nil)
}

// NodeRequest returns a request for enrolment; without a nonce, with one of
// the node's own.
func (c *AdminClient) NodeRequest(ctx context.Context, nonce []byte) ([]byte, error) {
	return post[json.RawMessage](ctx, c, "/v1/node/request", nonceQuery(nonce), nil)
}

// NodeActivate returns the answer to a challenge.
func (c *AdminClient) NodeActivate(ctx context.Context, challenge []byte) ([]byte, error) {
	return post[json.RawMessage](ctx, c, "/v1/node/activation", nil, challenge)
}

// NodeAttest has the daemon appraise its machine now and returns the
// attestation result.
func (c *AdminClient) NodeAttest(ctx context.Context) ([]byte, error) {
	return post[json.RawMessage](ctx, c, "/v1/node/attest", nil, nil)
}

// NodeInstall installs an approval of a root with this digest.
func (c *AdminClient) NodeInstall(ctx context.Context, approval []byte, rootSHA256 string) (EnrolmentView, error) {
	return post[EnrolmentView](ctx, c, "/v1/node/enrolment", url.Values{"root_sha256": {rootSHA256}}, approval)
}

// NodeReseal adds an approved boot state.
func (c *AdminClient) NodeReseal(ctx context.Context, approval []byte) error {
	_, err := post[struct{}](ctx, c, "/v1/node/boot-state", nil, approval)
	return err
}

func nonceQuery(nonce []byte) url.Values {
	if len(nonce) == 0 {
		return nil
	}
	return url.Values{"nonce": {hex.EncodeToString(nonce)}}
}
