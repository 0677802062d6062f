// Package cli is what all commands of vouch share: the global flags, the clients
// of the daemon, how output is printed, and what ends with which exit code.
//
// It knows no command. Commands take an [Options], return an error, and leave it
// to [Execute] to print it and to choose the exit code.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/config"
)

// Exit codes.
const (
	exitFailed = 1 // the command was understood and failed
	exitUsage  = 2 // the command was not understood
)

// Execute runs a command line and returns its exit code.
func Execute(ctx context.Context, root *cobra.Command, args []string, stdout, stderr io.Writer) int {
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if code := ExitError(0); errors.As(err, &code) {
		return int(code)
	}
	if !errors.Is(err, ErrSaid) {
		for line := range strings.SplitSeq(strings.TrimSpace(Words(err)), "\n") {
			fmt.Fprintf(stderr, "vouch: %s\n", line)
		}
	}
	if IsUsage(err) || strings.HasPrefix(err.Error(), "unknown command ") {
		return exitUsage
	}
	return exitFailed
}

// ErrSaid is returned by a command whose output already says what is wrong.
var ErrSaid = errors.New("see above")

// An ExitError ends vouch with the exit code of the program it ran, which has
// reported its own errors.
type ExitError int

func (e ExitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// Usage marks an error as one of the command line.
func Usage(err error) error { return usageError{err} }

// Usagef returns an error of the command line.
func Usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// IsUsage reports whether the command line was wrong.
func IsUsage(err error) bool { return errors.As(err, new(usageError)) }

// Options are the flags that every command takes.
type Options struct {
	Config string // file
	Output string // "text" or "json", unless a command allows others
}

// Flags defines the global flags.
func (o *Options) Flags(root *cobra.Command) {
	root.PersistentFlags().StringVar(&o.Config, "config", defaultConfig(), "the daemon's configuration `file` (or VOUCHD_CONFIG)")
	root.PersistentFlags().StringVarP(&o.Output, "output", "o", "text", "output `format`: text or json")
	root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return Usagef("%w; see %s --help", err, cmd.CommandPath())
	})
}

func defaultConfig() string {
	if file := os.Getenv("VOUCHD_CONFIG"); file != "" {
		return file
	}
	return "/etc/vouchd/vouchd.yaml"
}

// CheckOutput returns an error unless --output is one of the known formats.
func (o *Options) CheckOutput(known ...string) error {
	if !slices.Contains(known, o.Output) {
		return Usagef("--output %q: want %s", o.Output, strings.Join(known, " or "))
	}
	return nil
}

// Print writes v as JSON, or calls text to write it for people.
func (o *Options) Print(cmd *cobra.Command, v any, text func(w io.Writer)) error {
	w := cmd.OutOrStdout()
	if o.Output == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	text(w)
	return nil
}

// Load reads the daemon's configuration.
func (o *Options) Load() (*config.Config, error) { return config.Load(o.Config) }

// Strict makes wrong arguments usage errors, for a command and those below it,
// and so a group without a command.
func Strict(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return Usagef("%w; see %s --help", err, cmd.CommandPath())
			}
			return nil
		}
	}
	if cmd.HasSubCommands() && cmd.RunE == nil {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return Usagef("a command is required; see %s --help", cmd.CommandPath())
			}
			return Usagef("unknown command %q; see %s --help", args[0], cmd.CommandPath())
		}
	}
	for _, sub := range cmd.Commands() {
		Strict(sub)
	}
}

// Deprecated turns a command into a hidden alias of another, which says on
// standard error what to run instead.
func Deprecated(cmd *cobra.Command, instead string) *cobra.Command {
	do := cmd.RunE
	cmd.Hidden = true
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		warnDeprecated(cmd, cmd.CommandPath(), instead)
		return do(cmd, args)
	}
	return cmd
}

// DeprecatedFlag hides a flag that a command still takes. The command calls the
// function it returns, which warns if the flag was given.
func DeprecatedFlag(cmd *cobra.Command, name, instead string) (warn func()) {
	cmd.Flags().MarkHidden(name)
	return func() {
		if cmd.Flags().Changed(name) {
			warnDeprecated(cmd, "--"+name, instead)
		}
	}
}

func warnDeprecated(cmd *cobra.Command, old, instead string) {
	fmt.Fprintf(cmd.ErrOrStderr(), "vouch: %s is deprecated; use %s\n", old, instead)
}

// InFile names the file before each line of an error.
func InFile(path string, err error) error {
	return errors.New(path + ": " + strings.ReplaceAll(err.Error(), "\n", "\n"+path+": "))
}

// Count is a number of things, such as 1 lease or 2 leases.
func Count[N int | int64 | uint64](n N, one, many string) string {
	if n == 1 {
		many = one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// Time is how times are printed.
func Time(t time.Time) string { return t.Local().Format(time.RFC3339) }

// Ago is how long ago something was, or "never".
func Ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return time.Since(t).Round(time.Second).String()
}
