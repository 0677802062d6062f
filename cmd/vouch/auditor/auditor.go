// Package auditor is the commands of those who verify a host from outside: its
// log, its machine, and what it issues.
//
// Except for those below vouch bundle, they need no daemon, no TPM and no network, only
// files that came from the host and what is known of it from elsewhere.
package auditor

import (
	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

// Commands returns the commands.
func Commands(o *cli.Options) []*cobra.Command {
	return []*cobra.Command{newLog(o)}
}

// NodeCommands returns the commands below vouch node that are for its verifier.
func NodeCommands(o *cli.Options) []*cobra.Command {
	return []*cobra.Command{newNodeNonce(o), newNodeChallenge(o), newNodeVerify(o), newNodeAppraise(o)}
}
