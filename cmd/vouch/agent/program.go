package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/programs"
	"github.com/vouchd/vouchd/systemd"
)

func newProgram(o *cli.Options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "program",
		Short: "Run the programs defined in programs.d, or list them",
		Long: `The program commands start and list the programs that an administrator has defined in
/etc/vouchd/programs.d. vouch run is short for vouch program run.`,
	}
	cmd.AddCommand(newProgramRun(o, "vouch program run"), newProgramList(o))
	return cmd
}

// newRun is the short form of vouch program run.
func newRun(o *cli.Options) *cobra.Command { return newProgramRun(o, "vouch run") }

func newProgramRun(o *cli.Options, path string) *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "run NAME [-- ARGUMENT...]",
		Short: "Run a program defined in programs.d",
		Long: `Run starts a program defined in /etc/vouchd/programs.d as a transient systemd unit on
this terminal, and passes on standard streams, signals and the exit code. The
definition, not the caller, determines what runs, as which user and with which
variables. It requires systemd as PID 1.`,
		Example:           "  " + path + " research\n  " + path + " research -- --topic tides",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeProgram(o),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !systemd.IsManager() {
				return fmt.Errorf("%s requires systemd as PID 1", cmd.CommandPath())
			}
			if socket == "" {
				socket = programsSocket(o)
			}
			exit, err := programs.Run(cmd.Context(), socket, args[0], args[1:], os.Environ(), [3]*os.File{os.Stdin, os.Stdout, os.Stderr})
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%w: no program is defined, or vouchd-programs.path is not running", err)
			}
			if err != nil {
				return err
			}
			if code := exit.Code(); code != 0 {
				return cli.ExitError(code)
			}
			return nil
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringVar(&socket, "socket", "", "socket `path`, instead of programs_socket in the configuration")
	return cmd
}

// A programView is a program as vouch program list prints it.
type programView struct {
	Name        string   `json:"name"`
	Command     []string `json:"command"`
	Proxy       []string `json:"proxy,omitempty"`
	Sandbox     bool     `json:"sandbox"` // it reaches nothing but the proxy
	User        string   `json:"user"`
	AllowUsers  []string `json:"allow_users,omitempty"`
	AllowGroups []string `json:"allow_groups,omitempty"`
	Arguments   bool     `json:"allow_arguments"`
	Position    string   `json:"position"` // file:line
}

func newProgramList(o *cli.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the defined programs and who may start them",
		Long: `List reads the definitions in programs_dir and prints each program with who may start
it. It does not ask vouchd, which keeps the last valid definitions if these are not.`,
		Example: `  vouch program list
  vouch program list --output json | jq -r '.[].name'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.Load()
			if err != nil {
				return err
			}
			defined, err := programs.Load(c.ProgramsDir, true)
			if err != nil {
				return err
			}
			views := []programView{}
			for _, name := range slices.Sorted(maps.Keys(defined)) {
				p := defined[name]
				views = append(views, programView{name, p.Command, p.Proxy, p.Alone, p.User, p.AllowUsers, p.AllowGroups, p.AllowedArguments, p.Pos.String()})
			}
			return o.Print(cmd, views, func(w io.Writer) {
				for _, v := range views {
					v.print(w)
				}
			})
		},
	}
}

func (v programView) print(w io.Writer) {
	arguments := ""
	if v.Arguments {
		arguments = " [ARGUMENT...]"
	}
	fmt.Fprintf(w, "%s  (%s)\n    %s%s, as %s\n", v.Name, v.Position, strings.Join(v.Command, " "), arguments, v.User)
	if v.Sandbox {
		fmt.Fprintf(w, "    network: proxy (%s)\n", strings.Join(v.Proxy, ", "))
	}
	if len(v.AllowUsers) > 0 {
		fmt.Fprintf(w, "    users: %s\n", strings.Join(v.AllowUsers, ", "))
	}
	if len(v.AllowGroups) > 0 {
		fmt.Fprintf(w, "    groups: %s\n", strings.Join(v.AllowGroups, ", "))
	}
}

// completeProgram offers every defined program, not only those the user may start.
func completeProgram(o *cli.Options) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		c, err := o.Load()
		if err != nil || len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defined, _ := programs.Load(c.ProgramsDir, true)
		return slices.Sorted(maps.Keys(defined)), cobra.ShellCompDirectiveNoFileComp
	}
}

// programsSocket is the configured one, or the packages': an ordinary user may
// not be able to read the configuration.
func programsSocket(o *cli.Options) string {
	if c, err := o.Load(); err == nil {
		return c.ProgramsSocket
	}
	return "/run/vouchd/run.sock"
}
