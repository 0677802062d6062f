package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/packaging/version"
	"github.com/vouchd/vouchd/workloadapi/admin/client"
)

// Exit codes.
const (
	exitFailed = 1 // the command was understood and did not succeed
	exitUsage  = 2 // the command was not understood
)

// run is the whole program, for main and for tests.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if code := exitError(0); errors.As(err, &code) {
		return int(code)
	}
	if !errors.Is(err, errSaid) {
		for line := range strings.SplitSeq(strings.TrimSpace(err.Error()), "\n") {
			fmt.Fprintf(stderr, "vouch: %s\n", line)
		}
	}
	if isUsage(err) {
		return exitUsage
	}
	return exitFailed
}

// errSaid is returned by a command whose output has already said what is
// wrong.
var errSaid = errors.New("see above")

// A usageError is a command line that makes no sense.
type usageError struct{ error }

func isUsage(err error) bool {
	var u usageError
	return errors.As(err, &u) || strings.HasPrefix(err.Error(), "unknown command ")
}

// options are what every command takes.
type options struct {
	config string // file
	output string // "text" or "json"
}

func newRoot() *cobra.Command {
	var o options
	root := &cobra.Command{
		Use:   "vouch",
		Short: "Fetch identities and credentials from vouchd, ask it what it does, verify its log",
		Long: `vouch is the command line of vouchd. Agents fetch their identities with it,
administrators ask the daemon what it does and why, and auditors verify its log.

Exit codes: 0 success, 1 failed, 2 wrong usage.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version.String(),
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return o.checkOutput("text", "json")
		},
	}
	root.SetVersionTemplate(version.Text("vouch"))
	root.PersistentFlags().StringVar(&o.config, "config", defaultConfig(), "the daemon's configuration `file` (or VOUCHD_CONFIG)")
	root.PersistentFlags().StringVarP(&o.output, "output", "o", "text", "output `format`: text or json")
	root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	})
	root.AddCommand(
		newRun(&o), newHash(&o), newStatus(&o), newDoctor(&o), newCheck(&o), newEntry(&o), newFetch(&o), newLog(&o),
		newNode(&o), newAuthority(&o), newGet(&o), newExec(&o), newLease(&o), newSecret(&o), newMigrate(&o), newBundle(&o), newAWSCredentialProcess(&o),
		newSSHAgent(&o), newSSHCA(&o), newGitCredential(&o), newDockerCredential(&o), newKubectlCredential(&o),
	)
	for _, cmd := range root.Commands() {
		strict(cmd)
	}
	return root
}

// checkOutput holds --output to what a command knows.
func (o *options) checkOutput(known ...string) error {
	if !slices.Contains(known, o.output) {
		return usageError{fmt.Errorf("--output %q: want %s", o.output, strings.Join(known, " or "))}
	}
	return nil
}

// strict makes wrong arguments usage errors, and a group without a command
// too.
func strict(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
			}
			return nil
		}
	}
	if cmd.HasSubCommands() && cmd.RunE == nil {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{fmt.Errorf("which one? see %s --help", cmd.CommandPath())}
			}
			return usageError{fmt.Errorf("unknown command %q; see %s --help", args[0], cmd.CommandPath())}
		}
	}
	for _, sub := range cmd.Commands() {
		strict(sub)
	}
}

func defaultConfig() string {
	if file := os.Getenv("VOUCHD_CONFIG"); file != "" {
		return file
	}
	return "/etc/vouchd/vouchd.yaml"
}

// print writes v as JSON, or calls text to write it for people.
func (o *options) print(cmd *cobra.Command, v any, text func(w io.Writer)) error {
	w := cmd.OutOrStdout()
	if o.output == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	text(w)
	return nil
}

// admin returns a client of the daemon that the configuration names.
func (o *options) admin() (*client.Client, error) {
	c, err := config.Load(o.config)
	if err != nil {
		return nil, err
	}
	return client.New(c.AdminSocket), nil
}
