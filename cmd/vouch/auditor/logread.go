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
	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

func newLogExplain(o *cli.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "explain RECORD [DIR]",
		Short: "Explain one record, from the machine to the anchor",
		Long: `Explain shows the chain behind one record: the machine and how it booted, the process,
the entry, the authority key, the decision, its outcome, and the anchor that covers
it.`,
		Example: `  vouch log explain 4211
  vouch log explain 4211 ./copy-of-log --output json`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			index, err := recordNumber(args[0])
			if err != nil {
				return err
			}
			fsys, _, done, err := logFS(o, args[1:])
			if err != nil {
				return err
			}
			defer done()
			x, err := reader.Explain(cmd.Context(), fsys, index)
			if err != nil {
				return err
			}
			return o.Print(cmd, x, func(w io.Writer) { x.WriteText(w) })
		},
	}
}

func recordNumber(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 47)
	if err != nil {
		return 0, cli.Usagef("%q is not a record number", s)
	}
	return n, nil
}

func newLogReport(o *cli.Options) *cobra.Command {
	var since time.Duration
	cmd := &cobra.Command{
		Use:   "report [DIR]",
		Short: "Summarise what each identity received and used",
		Long: `Report shows what each identity was given, by which programs, for whom and how often,
and what looks unusual. Use it for a secrets audit. It does not verify proofs.`,
		Example: `  vouch log report --since 720h
  vouch log report --output json ./copy-of-log`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			fsys, _, done, err := logFS(o, args)
			if err != nil {
				return err
			}
			defer done()
			var from time.Time
			if since > 0 {
				from = time.Now().Add(-since)
			}
			u, err := reader.Summarise(cmd.Context(), fsys, from)
			if err != nil {
				return err
			}
			return o.Print(cmd, u, func(w io.Writer) { u.WriteText(w) })
		},
	}
	cmd.Flags().DurationVar(&since, "since", 0, "only records from the last `duration`, such as 720h")
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
			fsys, _, done, err := logFS(o, args)
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
	keys := make(map[string]uint64)
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 1, ' ', 0)
	fmt.Fprintf(w, "\nEach SVID, back to the TPM with EK %s\n", report.EKSHA256)
	for e, err := range reader.Records(cmd.Context(), fsys, 0) {
		if err != nil {
			return err
		}
		l := &e.Leaf
		if l.Key != nil && l.Outcome == audit.Success {
			keys[l.Key.KeyID] = l.Index
		}
		if l.Outcome != audit.Success || l.SVID == nil || l.Event != audit.EventX509SVID && l.Event != audit.EventJWTSVID {
			continue
		}
		// The node key, which the AK certified, signs an issuing CA; a JWT
		// key is named in a quote by the AK.
		signer, way := "issuing CA", "node key <- AK <- TPM"
		if l.Event == audit.EventJWTSVID {
			signer, way = "JWT key", "AK <- TPM"
		}
		fmt.Fprintf(w, "%d\t%s\t%s\tto pid %d of user %d\t<- %s (record %d)\t<- %s\n",
			l.Index, l.SPIFFEID, l.SVID.Kind, l.Workload.PID, l.Workload.UID, signer, keys[l.SVID.KeyID], way)
	}
	return w.Flush()
}
