//go:build vaultsuite

package vaultca_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/openbao/openbao/api/v2"

	"github.com/vouchd/vouchd/identity/vaultca"
	"github.com/vouchd/vouchd/secret"
)

// TestRealServerCertifiesANode sets up engines on a real Vault or OpenBao, at VAULT_ADDR with
// VAULT_TOKEN (and VAULT_CACERT), as docs/enrol.md has it, and takes them away again.
func TestRealServerCertifiesANode(t *testing.T) {
	config := api.NewConfig()
	config.Address, config.DisableEnvironment = os.Getenv("VAULT_ADDR"), true
	if file := os.Getenv("VAULT_CACERT"); file != "" {
		must(t, config.ConfigureTLS(&api.TLSConfig{CACert: file}))
	}
	admin, err := api.NewClient(config)
	must(t, err)
	admin.SetToken(os.Getenv("VAULT_TOKEN"))
	prefix := "vouchd-test-" + strings.ToLower(rand.Text()[:8])
	write := func(path string, data map[string]any) *api.Secret {
		t.Helper()
		answer, err := admin.Logical().WriteWithContext(t.Context(), path, data)
		must(t, err)
		return answer
	}
	key := newKey(t)
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	must(t, err)
	must(t, admin.Sys().Mount(prefix+"-pki", &api.MountInput{Type: "pki", Config: api.MountConfigInput{MaxLeaseTTL: "8760h"}}))
	defer admin.Sys().Unmount(prefix + "-pki")
	must(t, admin.Sys().EnableAuthWithOptions(prefix, &api.EnableAuthOptions{Type: "jwt"}))
	defer admin.Sys().DisableAuth(prefix)
	must(t, admin.Sys().PutPolicy(prefix, `path "`+prefix+`-pki/root/sign-intermediate" { capabilities = ["create", "update"] }`))
	defer admin.Sys().DeletePolicy(prefix)
	root := write(prefix+"-pki/root/generate/internal", map[string]any{"common_name": "root", "ttl": "8000h"})
	write("auth/"+prefix+"/config", map[string]any{"jwt_validation_pubkeys": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))})
	write("auth/"+prefix+"/role/vouchd", map[string]any{
		"role_type": "jwt", "user_claim": "sub", "bound_audiences": []string{"here"}, "bound_claims_type": "glob",
		"bound_claims": map[string]any{"sub": "vouchd-node:*"}, "token_policies": []string{prefix}, "token_ttl": "5m", "token_type": "service",
	})
	b, _ := pem.Decode([]byte(root.Data["certificate"].(string)))
	anchor, err := x509.ParseCertificate(b.Bytes)
	must(t, err)
	s := vaultca.Settings{
		Address: os.Getenv("VAULT_ADDR"), CAFile: os.Getenv("VAULT_CACERT"), Mount: prefix + "-pki", AuthMount: prefix, Role: "vouchd", Life: 24 * time.Hour, Root: anchor, Domain: domain,
	}
	by := func(subject string) vaultca.Proof {
		return vaultca.Proof{JWT: func(context.Context) (secret.Bytes, error) {
			signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
			if err != nil {
				return secret.Bytes{}, err
			}
			token, err := jwt.Signed(signer).Claims(jwt.Claims{Subject: subject, Audience: jwt.Audience{"here"}, Expiry: jwt.NewNumericDate(time.Now().Add(time.Minute)), IssuedAt: jwt.NewNumericDate(time.Now())}).Serialize()
			return secret.Of([]byte(token)), err
		}}
	}
	u, err := s.Certify(t.Context(), key, by("vouchd-node:abc"))
	must(t, err)
	if c := u.Chain[0]; c.MaxPathLen != 1 || c.URIs[0].String() != "spiffe://example.org" {
		t.Errorf("certified %v", c)
	}
	t.Logf("constrained to the trust domain: %t", vaultca.Constrained(u))
	if _, err := s.Certify(t.Context(), key, by("spiffe://example.org/agent")); err == nil {
		t.Error("a workload is certified")
	}
}
