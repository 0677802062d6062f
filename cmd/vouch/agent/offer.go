package agent

import (
	"context"
	"errors"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/credential"
)

// An offered credential is granted to this process, for a place that a tool may
// ask for.
type offered struct {
	Name string
	credential.Offer
}

// offersFor returns what this process is granted for one tool.
// A process without an identity is granted nothing. That is not an error: the
// tool tries its next helper.
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

// nearest returns the most specific of the offers that cover a place, or several
// if they are equally specific.
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
