package workloadapi

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/vouchd/vouchd/identity"
)

// A BundleView is what verifies everything that this host issues. There is no
// secret in it.
type BundleView struct {
	TrustDomain string          `json:"trust_domain"`
	JWTIssuer   string          `json:"jwt_issuer"` // the iss claim of JWT-SVIDs
	Sequence    uint64          `json:"sequence"`   // rises with every change
	X509        []byte          `json:"x509"`       // root certificates, DER, concatenated
	JWKS        json.RawMessage `json:"jwks"`       // of use jwt-svid (Workload API §6.2.2)
	// JWKSGoodUntil is when a copy of the JWKS lacks a key that signs; missing:
	// never.
	JWKSGoodUntil time.Time `json:"jwks_good_until,omitzero"`
}

// A BundleAdmin is what administrators publish.
type BundleAdmin struct {
	TrustDomain string
	JWTIssuer   string
	Bundle      func() *identity.Bundle
}

func (b *BundleAdmin) routes(mux *http.ServeMux) {
	if b == nil {
		return
	}
	mux.HandleFunc("GET /v1/bundle", func(w http.ResponseWriter, _ *http.Request) {
		bundle := b.Bundle()
		reply(w, BundleView{b.TrustDomain, b.JWTIssuer, bundle.Sequence, bundle.X509, bundle.JWKS, bundle.JWKSGoodUntil})
	})
}

// Bundle returns the trust bundle as it is now.
func (c *AdminClient) Bundle(ctx context.Context) (BundleView, error) {
	return get[BundleView](ctx, c, "/v1/bundle", nil)
}
