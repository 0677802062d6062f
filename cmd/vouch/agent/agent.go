// Package agent is the commands of agents and of those who develop them: they
// fetch identities, lease credentials, run programs with them, and answer the
// tools that ask a helper for a login.
//
// They ask the daemon on its agent socket, which identifies the caller through the
// kernel alone: each gets what the process vouch is entitled to.
package agent

import (
	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

// Commands returns the commands.
func Commands(o *cli.Options) []*cobra.Command {
	return []*cobra.Command{
		newFetch(o), newGet(o), newExec(o), newProgram(o), newRun(o), newSSHAgent(o),
		newRedact(o),
		newGitCredential(o), newDockerCredential(o), newKubectlCredential(o), newAWSCredentialProcess(o),
	}
}
