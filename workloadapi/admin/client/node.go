package client

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"net/url"

	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// Node asks of the machine's TPM, which the daemon has to itself.
type Node struct{ c *Client }

// Evidence returns evidence for a nonce.
func (n Node) Evidence(ctx context.Context, nonce []byte) ([]byte, error) {
	return post[json.RawMessage](ctx, n.c, "/v1/node/evidence", nonceQuery(nonce), nil)
}

// Request returns a request for enrolment, or to join a SPIRE server as its agent; without a
// nonce, with one of the node's own.
func (n Node) Request(ctx context.Context, nonce []byte, agent bool) ([]byte, error) {
	if agent {
		return post[json.RawMessage](ctx, n.c, "/v1/node/agent-request", nonceQuery(nonce), nil)
	}
	return post[json.RawMessage](ctx, n.c, "/v1/node/request", nonceQuery(nonce), nil)
}

// Activate returns the answer to a challenge.
func (n Node) Activate(ctx context.Context, challenge []byte) ([]byte, error) {
	return post[json.RawMessage](ctx, n.c, "/v1/node/activation", nil, challenge)
}

// Attest has the daemon appraise its machine now and returns the
// attestation result.
func (n Node) Attest(ctx context.Context) ([]byte, error) {
	return post[json.RawMessage](ctx, n.c, "/v1/node/attest", nil, nil)
}

// Install installs an approval of a root with this digest.
func (n Node) Install(ctx context.Context, approval []byte, rootSHA256 string) (view.Enrolment, error) {
	return post[view.Enrolment](ctx, n.c, "/v1/node/enrolment", url.Values{"root_sha256": {rootSHA256}}, approval)
}

// Reseal adds an approved boot state.
func (n Node) Reseal(ctx context.Context, approval []byte) error {
	_, err := post[struct{}](ctx, n.c, "/v1/node/boot-state", nil, approval)
	return err
}

func nonceQuery(nonce []byte) url.Values {
	if len(nonce) == 0 {
		return nil
	}
	return url.Values{"nonce": {hex.EncodeToString(nonce)}}
}
