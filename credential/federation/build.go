package federation

import (
	"cmp"
	"time"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential/endpoint"
)

// AWS returns a broker of AWS credentials for a role, for brokers that go on
// with them. An empty endpoint is the region's own.
func AWS(algorithm, audience, region, roleARN, to, caFile string) *Broker {
	return build("aws-2011-06-15", algorithm, audience, to, caFile, func(s *settings) {
		s.Region, s.RoleARN = at(region), at(roleARN)
	})
}

// Azure returns a broker of Azure access tokens of an application for a scope,
// for brokers that go on with them. An empty endpoint is the tenant's own.
func Azure(algorithm, audience, tenantID, clientID, scope, to, caFile string) *Broker {
	return build("azure-v2.0", algorithm, audience, to, caFile, func(s *settings) {
		s.TenantID, s.ClientID, s.Scope = at(tenantID), at(clientID), at(scope)
	})
}

// build makes a broker of a profile. The caller has checked the settings.
func build(profile, algorithm, audience, to, caFile string, set func(*settings)) *Broker {
	s := settings{Profile: at(profile), Audience: at(audience), Endpoint: at(to), CAFile: at(caFile)}
	set(&s)
	p := profiles[profile]
	return &Broker{settings: s, profile: p, algorithm: cmp.Or(algorithm, p.algorithm), client: endpoint.New(caFile), now: time.Now}
}

func at(s string) config.At[string] { return config.At[string]{Value: s} }
