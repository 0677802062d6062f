package auditor

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/analyst"
	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

// maxExplained bounds how many records are explained at once.
const maxExplained = 20

func newLogExplain(o *cli.Options) *cobra.Command {
	var q query
	cmd := &cobra.Command{
		Use:   "explain [RECORD] [LOG]",
		Short: "Explain one record, from the machine to the anchor",
		Long: `Explain shows the chain behind one record: the machine and how it booted, the process,
the entry, the authority key, the decision, its outcome, and the anchor that covers
it. Without RECORD it explains what was handed out or refused, by the flags that say
which, up to 20 records.`,
		Example: `  vouch log explain 4211
  vouch log explain 4211 ./copy-of-log --output json
  vouch log explain --credential warehouse --from "2026-11-26 10:00" --until "2026-11-26 11:00" log.tar`,
		Args: cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := q.resolve(time.Now(), o.Output); err != nil {
				return err
			}
			if !q.empty() {
				return q.explainAll(o, cmd, args)
			}
			if len(args) == 0 {
				return cli.Usagef("name a record, or say which by --credential, --spiffe-id, --outcome, --from or --since")
			}
			index, err := recordNumber(args[0])
			if err != nil {
				return err
			}
			fsys, _, done, err := OpenLog(o, args[1:])
			if err != nil {
				return err
			}
			defer done()
			x, err := analyst.Explain(cmd.Context(), fsys, index, q.zone)
			if err != nil {
				return err
			}
			return o.Print(cmd, x, func(w io.Writer) { x.WriteText(w) })
		},
	}
	q.flags(cmd)
	return cmd
}

// explainAll explains the decisions that the query is about.
func (q *query) explainAll(o *cli.Options, cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		if _, err := recordNumber(args[0]); err == nil || len(args) > 1 {
			return cli.Usagef("give a record, or flags that say which, not both")
		}
	}
	fsys, _, done, err := OpenLog(o, args)
	if err != nil {
		return err
	}
	defer done()
	var indexes []uint64
	var left int
	for e, err := range reader.Records(cmd.Context(), fsys, 0) {
		switch {
		case err != nil:
			return err
		case !q.Wants(&e.Leaf) || !decides(&e.Leaf):
		case len(indexes) == maxExplained:
			left++
		default:
			indexes = append(indexes, e.Index)
		}
	}
	all := []*analyst.Explanation{}
	for _, index := range indexes {
		x, err := analyst.Explain(cmd.Context(), fsys, index, q.zone)
		if err != nil {
			return err
		}
		all = append(all, x)
	}
	if left > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "vouch: %d more records are not explained; narrow down the time, or name a record\n", left)
	}
	return o.Print(cmd, all, func(w io.Writer) {
		for i, x := range all {
			if i > 0 {
				fmt.Fprintln(w)
			}
			x.WriteText(w)
		}
	})
}

// decides tells whether a record is that of something handed out or refused, and
// not of what led to it or came of it.
func decides(l *audit.Leaf) bool {
	switch l.Event {
	case audit.EventX509SVID, audit.EventJWTSVID, audit.EventWITSVID, audit.EventLeaseGrant:
		return true
	}
	return l.Outcome == audit.Denied
}

func recordNumber(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 47)
	if err != nil {
		return 0, cli.Usagef("%q is not a record number", s)
	}
	return n, nil
}

func newLogReport(o *cli.Options) *cobra.Command {
	var q query
	var taken string
	cmd := &cobra.Command{
		Use:   "report [LOG]",
		Short: "Summarise what each identity received and used",
		Long: `Report shows, for a time, what each identity was given, by which programs, for whom and
how often, how it went, what was used of it and what never was, what changed in the
machine's boot state, and what looks unusual. What became of a grant of that time is
told also if it was recorded later. It does not verify proofs.

With --inventory it also shows the static secrets of that run of vouch inventory that are
older than 90 days, or 30 if they lie in several places, others than their owner can read
them, or they may do more than one program needs, and who could read them.`,
		Example: `  vouch log report --since 720h
  vouch log report --since 720h --inventory today.json
  vouch log report --from "2026-11-26 10:00" --until "2026-11-26 11:00" log.tar
  vouch log report --credential warehouse --output csv ./copy-of-log`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := q.resolve(time.Now(), o.Output); err != nil {
				return err
			}
			if taken != "" && o.Output == "csv" {
				return cli.Usagef("--inventory has no place in CSV; its own is that of: vouch inventory --output csv")
			}
			fsys, _, done, err := OpenLog(o, args)
			if err != nil {
				return err
			}
			defer done()
			u, err := analyst.Summarise(cmd.Context(), fsys, q.Query)
			if err != nil {
				return err
			}
			if taken != "" {
				if err := addInventory(cmd, u, taken); err != nil {
					return err
				}
			}
			if o.Output == "csv" {
				return u.WriteCSV(cmd.OutOrStdout())
			}
			return o.Print(cmd, u, func(w io.Writer) { u.WriteText(w, q.zone) })
		},
	}
	q.flags(cmd)
	cmd.Flags().StringVar(&taken, "inventory", "", "a `file` with the JSON of vouch inventory, for the static secrets in it")
	outputs(o, cmd)
	return cmd
}

func newLogArchive(o *cli.Options) *cobra.Command {
	var file, to string
	var from uint64
	var warnTo func()
	cmd := &cobra.Command{
		Use:   "archive --write FILE [DIR]",
		Short: "Write a log to a tar file that verifies on its own",
		Long: `Archive writes the log, or its part from a given record on, to a tar file, which
vouch log verify and the other log commands take instead of a directory. The daemon
may be running.`,
		Example: `  vouch log archive --write log-2026-11.tar
  vouch log verify log-2026-11.tar`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			warnTo()
			if file != "" && to != "" {
				return cli.Usagef("--to is the old name of --write; give --write alone")
			}
			if file = cmp.Or(file, to); file == "" {
				return cli.Usagef("--write is required: the tar file to write")
			}
			fsys, _, done, err := OpenLog(o, args)
			if err != nil {
				return err
			}
			defer done()
			f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			err = errors.Join(reader.Archive(cmd.Context(), fsys, f, from), f.Sync(), f.Close())
			if err != nil {
				return errors.Join(err, os.Remove(file))
			}
			return o.Print(cmd, map[string]string{"file": file}, func(w io.Writer) { fmt.Fprintf(w, "wrote %s\n", file) })
		},
	}
	cmd.Flags().StringVar(&file, "write", "", "the tar `file` to write; it must not exist")
	cmd.Flags().StringVar(&to, "to", "", "the tar `file` to write")
	warnTo = cli.DeprecatedFlag(cmd, "to", "--write")
	cmd.Flags().Uint64Var(&from, "from", 0, "first `record` to archive")
	return cmd
}

// trace prints, of a log that was verified, how each SVID leads back to the
// TPM.
func trace(cmd *cobra.Command, fsys fs.FS, report *reader.Report) error {
	const earlier = "before this copy"
	keys, agent := make(map[string]string), earlier // in which records
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 1, ' ', 0)
	fmt.Fprintf(w, "\nEach SVID, back to the TPM with EK %s\n", report.EKSHA256)
	for e, err := range reader.Records(cmd.Context(), fsys, 0) {
		if err != nil {
			return err
		}
		l := &e.Leaf
		if l.Key != nil && l.Outcome == audit.Success {
			at := fmt.Sprintf("record %d", l.Index)
			if keys[l.Key.KeyID] = at; l.Event == audit.EventSPIREAttest {
				agent = at
			}
		}
		if l.Outcome != audit.Success || l.SVID == nil || l.Event != audit.EventX509SVID && l.Event != audit.EventJWTSVID && l.Event != audit.EventWITSVID {
			continue
		}
		// The node key, which the AK certified, signs an issuing CA; a JWT
		// key is named in a quote by the AK. A SPIRE server signs for an agent whose key is.
		signer, way := "issuing CA", "node key <- AK <- TPM"
		switch {
		case l.SVID.Signing != "":
			signer, way = "SPIRE server's authority", fmt.Sprintf("signed for the agent's key (%s) <- AK <- TPM", agent)
		case l.Event == audit.EventJWTSVID:
			signer, way = "JWT key", "AK <- TPM"
		}
		fmt.Fprintf(w, "%d\t%s\t%s\tto pid %d of user %d\t<- %s (%s)\t<- %s\n",
			l.Index, l.SPIFFEID, l.SVID.Kind, l.Workload.PID, l.Workload.UID, signer, cmp.Or(keys[l.SVID.KeyID], earlier), way)
	}
	return w.Flush()
}
