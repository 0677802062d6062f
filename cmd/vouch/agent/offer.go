package agent

import (
	"context"
	"errors"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/credential"
)

// An offered credential is one that this process is granted, for a place that a
// tool asks for.
type offered struct {
	Name string
	credential.Offer
}

// offersFor returns what this process is granted for places that a tool asks for.
// A process without an identity is granted nothing, which is no error: a tool
// turns to its next helper then.
func offersFor(ctx context.Context, c *cli.Credentials, tool string) (offers []offered, err error) {
	list, err := c.List(ctx)
	if errors.Is(err, cli.ErrDenied) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, granted := range list {
		for _, t := range granted.Targets {
			if t.Tool == tool {
				offers = append(offers, offered{granted.Name, credential.Offer{
					Target: credential.Target{Tool: t.Tool, Location: t.Location}, Username: t.Username,
				}})
			}
		}
	}
	return offers, nil
}

// nearest returns the offers for a place: of several that cover it the nearest,
// and more than one where they are as near.
func nearest(offers []offered, asked credential.Target) (near []offered) {
	for _, o := range offers {
		if !o.Covers(asked) {
			continue
		}
		switch {
		case len(near) == 0 || len(o.Location) == len(near[0].Location):
			near = append(near, o)
		case len(o.Location) > len(near[0].Location):
			near = []offered{o}
		}
	}
	return near
}
