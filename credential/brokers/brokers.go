// Package brokers is all the kinds of source that credentials come from.
package brokers

import (
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/federation"
	"github.com/vouchd/vouchd/credential/fetched"
	"github.com/vouchd/vouchd/credential/github"
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
}

// All returns every kind of source by its name in definitions.
func All(d Deps) credential.Brokers {
	return credential.Brokers{
		"aws-secret":   fetched.OpenAWS,
		"azure-secret": fetched.OpenAzure,
		"federation":   federation.Open,
		"github":       github.Opener(d.Keys),
		"infisical":    fetched.OpenInfisical,
		"oauth2":       oauth2.Opener(d.Secrets),
		"postgres":     postgres.Open,
		"ssh":          sshca.Opener(d.Keys),
		"static":       static.Opener(d.Sealed),
		"vault":        vault.Open,
	}
}
