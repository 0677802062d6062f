package federation

import (
	"time"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential/endpoint"
)

// AWS returns a broker of AWS credentials for a role, for brokers that go on
// with them. An empty endpoint is the region's own.
func AWS(audience, region, roleARN, to, caFile string) *Broker {
	return build("aws-2011-06-15", audience, to, caFile, func(s *settings) {
		s.Region, s.RoleARN = at(region), at(roleARN)
	})
}

// Azure returns a broker of Azure access tokens of an application for a scope,
// for brokers that go on with them. An empty endpoint is the tenant's own.
func Azure(audience, tenantID, clientID, scope, to, caFile string) *Broker {
	return build("azure-v2.0", audience, to, caFile, func(s *settings) {
		s.TenantID, s.ClientID, s.Scope = at(tenantID), at(clientID), at(scope)
	})
}

// build makes a broker of a profile. The caller has checked the settings.
func build(profile, audience, to, caFile string, set func(*settings)) *Broker {
	s := settings{Profile: at(profile), Audience: at(audience), Endpoint: at(to), CAFile: at(caFile)}
	set(&s)
	return &Broker{settings: s, profile: profiles[profile], client: endpoint.New(caFile), now: time.Now}
}

func at(s string) config.At[string] { return config.At[string]{Value: s} }
