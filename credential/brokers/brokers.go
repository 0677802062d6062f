// Package brokers is all the kinds of source that credentials come from.
package brokers

import (
	"slices"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/federation"
	"github.com/vouchd/vouchd/credential/fetched"
	"github.com/vouchd/vouchd/credential/github"
	"github.com/vouchd/vouchd/credential/none"
	"github.com/vouchd/vouchd/credential/oauth2"
	"github.com/vouchd/vouchd/credential/postgres"
	"github.com/vouchd/vouchd/credential/sshca"
	"github.com/vouchd/vouchd/credential/static"
	"github.com/vouchd/vouchd/credential/vault"
)

// Keys are the keys in the TPM that sign for brokers.
type Keys interface {
	github.Keys
	sshca.Keys
}

// Deps are what brokers keep things in. All may be left out where definitions
// are only checked, and nothing is issued.
type Deps struct {
	Keys    Keys
	Secrets *credential.Secrets // that upstreams renew, such as refresh tokens
	Sealed  static.Store        // that administrators seal

	JWTAlgorithms []string // that JWT-SVIDs can be signed with; empty: any
}

// All returns every kind of source by its name in definitions.
func All(d Deps) credential.Brokers {
	all := credential.Brokers{
		"aws-secret":   fetched.OpenAWS,
		"azure-secret": fetched.OpenAzure,
		"federation":   federation.Open,
		"github":       github.Opener(d.Keys),
		"infisical":    fetched.OpenInfisical,
		"none":         none.Open,
		"oauth2":       oauth2.Opener(d.Secrets),
		"postgres":     postgres.Open,
		"ssh":          sshca.Opener(d.Keys),
		"static":       static.Opener(d.Sealed),
		"vault":        vault.Open,
	}
	for kind, open := range all {
		all[kind] = func(def *credential.Definition, s config.Section) (credential.Broker, error) {
			b, err := open(def, s)
			if err == nil {
				err = d.signs(def, b)
			}
			return b, err
		}
	}
	return all
}

// signs refuses a definition whose upstream takes only tokens that are never issued.
func (d Deps) signs(def *credential.Definition, b credential.Broker) error {
	needs := b.Traits().JWTAlgorithm
	if needs == "" || len(d.JWTAlgorithms) == 0 || slices.Contains(d.JWTAlgorithms, needs) {
		return nil
	}
	var problems config.Errors
	problems.Add(def.Pos, "credential %s needs JWT-SVIDs signed with %s, which is not among authority.jwt_algorithms in vouchd.yaml; add it there, which needs authority.jwt_key: sealed", def.Name, needs)
	return problems.Err()
}
