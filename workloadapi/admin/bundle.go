package admin

import (
	"net/http"

	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// Bundles is what administrators publish.
type Bundles struct {
	TrustDomain string
	JWTIssuer   string
	Bundle      func() *identity.Bundle
}

func (b *Bundles) routes(mux *http.ServeMux) {
	if b == nil {
		return
	}
	mux.HandleFunc("GET /v1/bundle", func(w http.ResponseWriter, _ *http.Request) {
		bundle := b.Bundle()
		reply(w, view.Bundle{
			TrustDomain: b.TrustDomain, JWTIssuer: b.JWTIssuer,
			Sequence: bundle.Sequence, X509: bundle.X509, JWKS: bundle.JWKS, JWKSGoodUntil: bundle.JWKSGoodUntil,
		})
	})
}
