package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/tool"
	"github.com/vouchd/vouchd/secret"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
)

// errNoOffer means that this process is granted nothing for a place, and the
// tool should continue without.
var errNoOffer = errors.New("nothing is granted for it")

// A found is a credential that a tool is given.
type found struct {
	lease  *credentialv1.Lease
	fields []secret.Field
	offer  offered
}

// A helper leases for a tool.
type helper struct {
	leaser
	verbose bool
}

func (h *helper) flags(cmd *cobra.Command) {
	h.leaser.flags(cmd)
	cmd.Flags().BoolVarP(&h.verbose, "verbose", "v", false, "print what was asked for and what is granted to standard error")
}

// explain says what was asked for, and what there is.
func (h *helper) explain(asked credential.Target, offers, near []offered) {
	if !h.verbose {
		return
	}
	fmt.Fprintf(os.Stderr, "vouch: %s asks for %s\n", asked.Tool, asked.Location)
	for _, o := range offers {
		verdict := "does not match"
		if slices.Contains(near, o) {
			verdict = "matches"
		}
		fmt.Fprintf(os.Stderr, "vouch: credential %s for %s: %s\n", o.Name, o.Location, verdict)
	}
	if len(offers) == 0 {
		fmt.Fprintf(os.Stderr, "vouch: no credential for %s is granted to this process\n", asked.Tool)
	}
}

// lend leases what this process is granted for a place, and has give pass it to
// the tool. If that fails, the lease is revoked.
func (h *helper) lend(ctx context.Context, client *cli.Credentials, asked credential.Target, give func(*found) error) error {
	got, err := h.find(ctx, client, asked)
	if err != nil {
		return err
	}
	defer wipe(got.fields)
	if err := give(got); err != nil {
		h.revokeAll(context.WithoutCancel(ctx), client, []*credentialv1.Lease{got.lease})
		return fmt.Errorf("%s cannot be given to %s: %w", got.offer.Name, asked.Tool, err)
	}
	return nil
}

// find leases what this process is granted for a place, or returns errNoOffer.
func (h *helper) find(ctx context.Context, client *cli.Credentials, asked credential.Target) (*found, error) {
	offers, err := offersFor(ctx, client, asked.Tool)
	if err != nil {
		return nil, err
	}
	near := nearest(offers, asked)
	h.explain(asked, offers, near)
	switch len(near) {
	case 0:
		return nil, errNoOffer
	case 1:
	default:
		var names []string
		for _, o := range near {
			names = append(names, o.Name)
		}
		return nil, fmt.Errorf("credentials %s are all for %s; grant only one of them", strings.Join(names, ", "), near[0].Location)
	}
	req, err := h.request(near[0].Name, credentialv1.Exposure_EXPOSURE_MEMORY)
	if err != nil {
		return nil, err
	}
	req.Reuse = true
	lease, fields, err := client.Grant(ctx, req)
	if err != nil {
		return nil, err
	}
	return &found{lease, fields, near[0]}, nil
}

func (f *found) expires() time.Time { return time.Unix(f.lease.ExpiresAt, 0) }

// login is the credential as a tool wants it.
func (f *found) login() (tool.Login, error) { return tool.LoginOf(f.fields, f.offer.Username) }
