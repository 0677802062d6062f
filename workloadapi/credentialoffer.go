package workloadapi

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
)

// An OfferedCredential is one that this process is granted, for a place that a
// tool asks for.
type OfferedCredential struct {
	Name string
	credential.Offer
}

// Offers returns what this process is granted for places that a tool asks for.
// A process without an identity is granted nothing, which is no error: a tool
// goes on to its next helper then.
func (c *CredentialClient) Offers(ctx context.Context, tool string) (offers []OfferedCredential, err error) {
	resp, err := c.api.ListCredentials(ctx, &credentialv1.ListCredentialsRequest{})
	if status.Code(err) == codes.PermissionDenied {
		return nil, nil
	}
	if err != nil {
		return nil, c.explain(ctx, "listing credentials", err)
	}
	for _, granted := range resp.Credentials {
		for _, t := range granted.Targets {
			if t.Tool == tool {
				offers = append(offers, OfferedCredential{granted.Name, credential.Offer{
					Target: credential.Target{Tool: t.Tool, Location: t.Location}, Username: t.Username,
				}})
			}
		}
	}
	return offers, nil
}

// Nearest returns the offers for a place: of several that cover it the nearest,
// and more than one where they are as near.
func Nearest(offers []OfferedCredential, asked credential.Target) (nearest []OfferedCredential) {
	for _, o := range offers {
		if !o.Covers(asked) {
			continue
		}
		switch {
		case len(nearest) == 0 || len(o.Location) == len(nearest[0].Location):
			nearest = append(nearest, o)
		case len(o.Location) > len(nearest[0].Location):
			nearest = []OfferedCredential{o}
		}
	}
	return nearest
}
