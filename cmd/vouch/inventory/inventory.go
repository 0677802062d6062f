// Package inventory is the command that finds the secrets that lie on a host.
//
// It needs no daemon. Finding is done by the packages inventory and inventory/scan of the
// module; here are the flags, what is gone over if nothing is named, and the printing.
package inventory

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/inventory/scan"
)

// Commands returns the command.
func Commands(o *cli.Options) []*cobra.Command { return []*cobra.Command{newInventory(o)} }

// What --fail-on takes.
const (
	failOnAny    = "any"
	failOnStatic = "static"
	failOnNone   = "none"
)

type request struct {
	scan.Scan
	key    string
	since  string
	failOn string
}

func newInventory(o *cli.Options) *cobra.Command {
	var r request
	cmd := &cobra.Command{
		Use:   "inventory [DIR...]",
		Short: "Find the secrets that lie on this host",
		Long: `Inventory finds secrets in files, units and the environments of processes, and says
for each whose it is, who can read it, how old it is, where else the same one lies, and
which command replaces it. It prints no value, nor a part of one: a fingerprint tells
that the same secret lies in two places. It changes nothing, and writes nothing but the
key of these fingerprints, once.

Without DIR it goes over the home directories in /etc/passwd (as root; else your own),
/etc, /opt, /srv, /usr/local, the directories of units, the working directory, and the
environments of processes (as root of all, else of your own). With DIR it goes over these
trees only, and over no process. It follows no link, enters no network file system below
them, and opens only files that a finder knows by name or place, or that are small enough
to be a key. What can't be read is counted and named, and stops nothing.

--since keeps what is new: with a duration (24h, 90d) or a date what was written since
then; with the JSON of an earlier run on this host what that run has not.

A secret is static if it works until somebody changes it. It expires if its own text says
when. It is leased, and no problem, if a handle of vouchd stands there instead.

With --fail-on it exits with 1 if there is any secret, or a static one; leased ones never
count. Otherwise it exits with 0 whatever it finds. For a pipeline, that is:
vouch inventory --fail-on any .`,
		Example: `  vouch inventory
  vouch inventory --fail-on any .
  vouch inventory --history --exclude node_modules ~/src
  vouch inventory --output json > today.json
  vouch inventory --since yesterday.json --output csv
  vouch log report --inventory today.json`,
		RunE: func(cmd *cobra.Command, args []string) error { return r.run(cmd, o, args) },
	}
	cmd.PersistentPreRunE = func(*cobra.Command, []string) error { return o.CheckOutput("text", "json", "csv") }
	f := cmd.Flags()
	f.StringVar(&r.since, "since", "", "only what is new since a `duration`, a date, or the JSON file of an earlier run")
	f.BoolVar(&r.History, "history", false, "also read every commit of the git repositories")
	f.StringArrayVar(&r.Exclude, "exclude", nil, "leave out files and directories of this `name`, or path; may be repeated")
	f.StringVar(&r.failOn, "fail-on", failOnNone, "exit with 1 if there is such a `kind` of secret: any, static or none")
	f.StringVar(&r.key, "key", "", "the `file` with the key of the fingerprints (default in the state directory)")
	kinds := []string{failOnAny, failOnStatic, failOnNone}
	cmd.RegisterFlagCompletionFunc("fail-on", cobra.FixedCompletions(kinds, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// progressAfter is how soon progress shows.
const progressAfter = 2 * time.Second

func (r *request) run(cmd *cobra.Command, o *cli.Options, dirs []string) error {
	if !slices.Contains([]string{failOnAny, failOnStatic, failOnNone}, r.failOn) {
		return cli.Usagef("--fail-on %q: want any, static or none", r.failOn)
	}
	for i, pattern := range r.Exclude {
		if _, err := filepath.Match(pattern, ""); err != nil || pattern == "" {
			return cli.Usagef("--exclude %q is no pattern of a name or a path", pattern)
		}
		if strings.Contains(pattern, "/") {
			abs, err := filepath.Abs(pattern)
			if err != nil {
				return err
			}
			r.Exclude[i] = abs
		}
	}
	news, err := parseSince(cmd, r.since, time.Now())
	if err != nil {
		return err
	}
	if r.History {
		if err := scan.CanReadHistory(); err != nil {
			return err
		}
	}
	for _, d := range dirs {
		if _, err := os.Stat(d); err != nil {
			return err // a pipeline that misspells it must not pass
		}
	}
	if r.key == "" {
		if r.key, err = defaultKey(o); err != nil {
			return err
		}
	}
	if r.Key, err = scan.ReadKey(r.key); err != nil {
		return fmt.Errorf("reading the key of fingerprints: %w", err)
	}
	if r.Dirs = dirs; len(dirs) == 0 {
		r.Dirs, r.Processes = defaultDirs(), true
	}
	stop := cli.Progress(cmd, progressAfter, func() string {
		return fmt.Sprintf("scanning: %d files, %d findings", r.Files.Load(), r.Found.Load())
	})
	result, err := r.Run(cmd.Context())
	stop()
	if err != nil {
		return fmt.Errorf("taking inventory: %w", err)
	}
	view := view{Result: result, Since: r.since}
	view.keep(news)
	if err := view.print(cmd, o); err != nil {
		return err
	}
	if r.failOn == failOnAny && view.Summary.Static+view.Summary.Expiring > 0 || r.failOn == failOnStatic && view.Summary.Static > 0 {
		return cli.ErrSaid
	}
	return nil
}

func (v *view) print(cmd *cobra.Command, o *cli.Options) error {
	if o.Output == "csv" {
		return v.writeCSV(cmd.OutOrStdout())
	}
	return o.Print(cmd, v, func(w io.Writer) { v.writeText(w) })
}
