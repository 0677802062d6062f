// Command vouch is for agents, administrators and auditors: it fetches
// identities and credentials, asks the daemon what it does and why, and verifies
// its log.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/admin"
	"github.com/vouchd/vouchd/cmd/vouch/agent"
	"github.com/vouchd/vouchd/cmd/vouch/auditor"
	"github.com/vouchd/vouchd/cmd/vouch/bugreport"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/cmd/vouch/drill"
	"github.com/vouchd/vouchd/cmd/vouch/endpoint"
	"github.com/vouchd/vouchd/cmd/vouch/inventory"
	"github.com/vouchd/vouchd/cmd/vouch/join"
	"github.com/vouchd/vouchd/cmd/vouch/migrate"
	"github.com/vouchd/vouchd/cmd/vouch/sandbox"
	"github.com/vouchd/vouchd/cmd/vouch/svid"
	"github.com/vouchd/vouchd/cmd/vouch/ui"
	"github.com/vouchd/vouchd/packaging/version"
	"github.com/vouchd/vouchd/secret"
)

func main() {
	if sandbox.IsStage(os.Args) {
		sandbox.RunStage(os.Args) // by vouch itself, and for nobody else
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := secret.KeepOutOfDumps(); err != nil { // some commands hold credentials
		fmt.Fprintln(os.Stderr, "vouch:", err)
		os.Exit(1)
	}
	os.Exit(cli.Execute(ctx, newRoot(), argsFor(os.Args), os.Stdout, os.Stderr))
}

func newRoot() *cobra.Command {
	var o cli.Options
	root := &cobra.Command{
		Use:   "vouch",
		Short: "Fetch identities and credentials; manage and audit vouchd",
		Long: `vouch is the command line of vouchd. Agents fetch identities and credentials with
it, administrators manage the daemon, and auditors verify its log.

Exit codes: 0 success, 1 failed, 2 wrong usage.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version.String(),
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return o.CheckOutput("text", "json")
		},
	}
	root.SetVersionTemplate(version.Text("vouch"))
	o.Flags(root)
	root.AddCommand(agent.Commands(&o)...)
	root.AddCommand(admin.Commands(&o)...)
	root.AddCommand(auditor.Commands(&o)...)
	root.AddCommand(inventory.Commands(&o)...)
	root.AddCommand(migrate.Commands(&o)...)
	root.AddCommand(newNode(&o), newPolicy(&o), newVersion(&o), svid.New(&o), bugreport.New(&o), drill.New(&o), newBundle(&o), ui.New(&o))
	o.Complete(root)
	for _, cmd := range root.Commands() {
		cli.Strict(cmd)
	}
	return root
}

// newNode is for two kinds of people: those of the host, and those who verify it.
func newNode(o *cli.Options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Prove this machine by its TPM, and appraise others",
		Long: `The node commands are for two machines. On the one that runs the daemon, evidence,
activate, attest, request, install, join and reseal ask the daemon, which holds the TPM.
On the verifier's, which needs neither daemon nor TPM nor network, nonce,
challenge, verify and appraise work on the files that the first one made.`,
	}
	cmd.AddCommand(admin.NodeCommands(o)...)
	cmd.AddCommand(auditor.NodeCommands(o)...)
	cmd.AddCommand(join.Command(o))
	return cmd
}

// newBundle is for those who publish what this host issues with, by files or by an endpoint.
func newBundle(o *cli.Options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bundle",
		Short: "Publish what verifies the identities of this host",
		Long: `Bundle writes or serves the documents with which others verify what this host issues:
for relying parties that speak OpenID Connect, such as clouds, and for other SPIFFE trust
domains. They contain no secrets. What is written can be served by any web server or
bucket; serve answers other SPIFFE trust domains itself.

A key is published one lifetime (authority.jwt_key_ttl) before it signs. A copy
refreshed at least that often always contains the signing key.`,
	}
	cmd.AddCommand(auditor.BundleCommands(o)...)
	cmd.AddCommand(endpoint.Command(o))
	return cmd
}

// newPolicy is for those who write rules, and reads what the log has of refusals.
func newPolicy(o *cli.Options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Try and propose rules for calls that vouchd makes",
		Long: `The policy commands are about the rules in proxy blocks of credentials, by which
vouchd makes calls for agents that do not hold the key (docs/proxy.md).`,
	}
	cmd.AddCommand(admin.PolicyCommands(o)...)
	cmd.AddCommand(auditor.PolicyCommands(o)...)
	return cmd
}

// toolNames are the names under which tools look for their helpers. Each is a
// link to vouch.
var toolNames = map[string]string{
	"docker-credential-vouch": "docker-credential",
	"git-credential-vouch":    "git-credential",
}

// argsFor returns vouch's arguments, also when it was called by one of a tool's
// names.
func argsFor(argv []string) []string {
	if len(argv) == 0 {
		return nil
	}
	if command, ok := toolNames[filepath.Base(argv[0])]; ok {
		return append([]string{command}, argv[1:]...)
	}
	return argv[1:]
}
