// Package admin holds the commands for those who run vouchd on a host or in a fleet:
// what the daemon is doing, which processes are entitled to what, the machine's
// keys and its enrolment, secrets, and the root of an organisation.
//
// Most of them ask the daemon on its administrators' socket, which answers root
// and the daemon's own user. A command is flags, help and printing; what it does
// beyond that is in a package of its own.
package admin

import (
	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

// Commands returns the commands.
func Commands(o *cli.Options) []*cobra.Command {
	return []*cobra.Command{
		newStatus(o), newDoctor(o), newCheck(o), newEntry(o), newIdentity(o), newHash(o), newLease(o),
		newSecret(o), newSSHCA(o), newAuthority(o), newSandbox(o),
	}
}

// NodeCommands returns the commands below vouch node that are for the machine
// itself.
func NodeCommands(o *cli.Options) []*cobra.Command {
	return []*cobra.Command{
		newNodeEvidence(o), newNodeActivate(o), newNodeAttest(o), newNodePolicy(o),
		newNodeRequest(o), newNodeInstall(o), newNodeReseal(o), newNodeReset(o),
	}
}
