package admin

import (
	"context"
	"fmt"
	"net/http"

	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// Bundles is what administrators publish.
type Bundles struct {
	TrustDomain string
	JWTIssuer   string
	Bundle      func(context.Context) (*identity.Bundle, error)
}

func (b *Bundles) routes(mux *http.ServeMux) {
	if b == nil {
		return
	}
	mux.HandleFunc("GET /v1/bundle", func(w http.ResponseWriter, r *http.Request) {
		bundle, err := b.Bundle(r.Context())
		if err != nil {
			http.Error(w, fmt.Sprintf("getting the bundle: %v", err), http.StatusInternalServerError)
			return
		}
		reply(w, view.Bundle{
			TrustDomain: b.TrustDomain, JWTIssuer: b.JWTIssuer,
			Sequence: bundle.Sequence, X509: bundle.X509, JWKS: bundle.JWKS, JWKSGoodUntil: bundle.JWKSGoodUntil,
		})
	})
}
