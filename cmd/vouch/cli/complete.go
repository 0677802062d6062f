package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/brokers"
)

// completionTime is how long a shell waits for what the daemon knows. Without an answer
// there is nothing to complete, and nothing is said.
const completionTime = 300 * time.Millisecond

// Complete has shells complete what the daemon and the configuration know by name, wherever a
// flag or an argument takes it.
func (o *Options) Complete(root *cobra.Command) {
	flags := map[string]source{"credential": o.credentials, "proxy": o.credentials, "identity": o.identities, "spiffe-id": o.identities, "event": events}
	arguments := map[string]source{
		"get": o.credentials, "aws-credential-process": o.credentials, "policy test": o.credentials,
		"identity disable": o.identities, "identity enable": o.identities, "secret rotate": o.secrets, "secret remove": o.secrets,
	}
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		for name, from := range flags {
			if cmd.Flags().Lookup(name) != nil {
				cmd.RegisterFlagCompletionFunc(name, from.complete)
			}
		}
		if from := arguments[strings.TrimPrefix(cmd.CommandPath(), root.Name()+" ")]; from != nil {
			cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
				if len(args) > 0 {
					return nil, cobra.ShellCompDirectiveNoFileComp
				}
				return from.complete(cmd, args, begun)
			}
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(root)
}

// A source knows names.
type source func(ctx context.Context) []string

func (from source) complete(cmd *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	names := slices.DeleteFunc(from(ctx), func(name string) bool { return !strings.HasPrefix(name, begun) })
	slices.Sort(names)
	return slices.Compact(names), cobra.ShellCompDirectiveNoFileComp
}

func events(context.Context) (names []string) {
	for _, e := range audit.Events() {
		names = append(names, string(e))
	}
	return names
}

func (o *Options) identities(ctx context.Context) (names []string) {
	client, err := o.Admin()
	if err != nil {
		return nil
	}
	entries, _ := client.Entries(ctx)
	for _, e := range entries {
		names = append(names, e.SPIFFEID)
	}
	return names
}

// credentials are those that are defined, for who can read that, and else those that this
// process is granted.
func (o *Options) credentials(ctx context.Context) (names []string) {
	if c, err := o.Load(); err == nil {
		if defs, err := credential.LoadDefinitions(c.CredentialsDir, brokers.All(brokers.Deps{}), true); err == nil {
			defer defs.Close()
			for _, d := range defs.All() {
				names = append(names, d.Name)
			}
		}
	}
	if len(names) > 0 {
		return names
	}
	client, err := NewCredentials("")
	if err != nil {
		return nil
	}
	defer client.Close()
	granted, _ := client.List(ctx)
	for _, g := range granted {
		names = append(names, g.Name)
	}
	return names
}

func (o *Options) secrets(ctx context.Context) (names []string) {
	client, err := o.Admin()
	if err != nil {
		return nil
	}
	secrets, _ := client.Secrets.List(ctx)
	for _, s := range secrets {
		names = append(names, s.Name)
	}
	return names
}
