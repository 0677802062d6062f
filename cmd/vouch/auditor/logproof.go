package auditor

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

// A verifier must know the log's key from elsewhere; a prover can take the log's
// word for it.
const (
	keyToVerify = "the log's `key`, as vouch log verify prints it"
	keyToProve  = "the log's `key` (default the one the log names)"
)

func newLogProve(o *cli.Options) *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use:   "prove RECORD [LOG]",
		Short: "Make a proof that a record is in the log",
		Long: `Prove writes a text that holds one record and proves that it is in the log. Anyone
who has the log's key can verify it with vouch log verify-proof, and needs nothing
else.`,
		Example: `  vouch log prove 4211 > proof.txt
  vouch log verify-proof --key "$KEY" proof.txt`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			index, err := recordNumber(args[0])
			if err != nil {
				return err
			}
			fsys, key, done, err := logAndKey(o, cmd, args[1:], key)
			if err != nil {
				return err
			}
			defer done()
			proof, err := reader.Prove(cmd.Context(), fsys, index, key)
			if err != nil {
				return err
			}
			return printProof(o, cmd, proofView{Record: &index, Key: key, Proof: string(proof)})
		},
	}
	cmd.Flags().StringVar(&key, "key", "", keyToProve)
	return cmd
}

// A proofView is a proof in JSON, with what it is of. The key is for finding it
// among others, and proves nothing.
type proofView struct {
	Record *uint64 `json:"record,omitempty"`
	Older  *uint64 `json:"older,omitempty"`
	Newer  *uint64 `json:"newer,omitempty"`
	Key    string  `json:"key"`
	Proof  string  `json:"proof"` // the text, as a file
}

func printProof(o *cli.Options, cmd *cobra.Command, v proofView) error {
	return o.Print(cmd, v, func(w io.Writer) { io.WriteString(w, v.Proof) })
}

// readProof reads a proof, in either form.
func readProof(cmd *cobra.Command, file string) ([]byte, error) {
	b, err := cli.ReadDocument(cmd, file, cli.MaxSmallDocument)
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(b, []byte("{")) {
		return append(b, '\n'), nil
	}
	var v proofView
	if err := json.Unmarshal(b, &v); err != nil || v.Proof == "" {
		return nil, fmt.Errorf("%s is not a proof", file)
	}
	return []byte(v.Proof), nil
}

// logAndKey opens the log as OpenLog does, and returns the key, or the one that the
// log names of itself. The caller calls done when it has read it.
func logAndKey(o *cli.Options, cmd *cobra.Command, args []string, key string) (fsys fs.FS, vkey string, done func() error, err error) {
	fsys, _, done, err = OpenLog(o, args)
	if err != nil || key != "" {
		return fsys, key, done, err
	}
	for e, readErr := range reader.Records(cmd.Context(), fsys, 0) {
		if err = readErr; err != nil {
			break
		}
		if e.Leaf.Event == audit.EventSegment && e.Leaf.Log != nil {
			return fsys, e.Leaf.Log.Key, done, nil
		}
	}
	done()
	return nil, "", nil, cmp.Or(err, errors.New("the log does not name its key; give it with --key"))
}

func newLogVerifyProof(o *cli.Options) *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use:   "verify-proof --key KEY FILE",
		Short: "Verify a proof that a record is in a log",
		Long: `Verify-proof verifies the output of vouch log prove with the log's key alone, and
prints the record. The key must come from somewhere you trust, such as an earlier
vouch log verify.`,
		Example: `  vouch log verify-proof --key "$KEY" proof.txt`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if key == "" {
				return cli.Usagef("--key is required; vouch log verify prints it")
			}
			proof, err := readProof(cmd, args[0])
			if err != nil {
				return err
			}
			e, c, err := reader.CheckProof(proof, key)
			if err != nil {
				return err
			}
			if o.Output == "json" {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", e.Raw)
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "record %d is in the log %s of %d records:\n%s\n", e.Index, c.Origin, c.Size, (&query{zone: time.Local}).line(&e.Leaf))
			return err
		},
	}
	cmd.Flags().StringVar(&key, "key", "", keyToVerify)
	return cmd
}

func newLogConsistency(o *cli.Options) *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use:   "consistency OLDER NEWER [LOG]",
		Short: "Prove that one state of the log continues another",
		Long: `Consistency proves that the log at NEWER records continues the log at OLDER records:
nothing was changed or removed between two checkpoints that you hold.`,
		Example: `  vouch log consistency 1000 4212 > consistency.txt`,
		Args:    cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			older, err := recordNumber(args[0])
			if err != nil {
				return err
			}
			newer, err := recordNumber(args[1])
			if err != nil {
				return err
			}
			fsys, key, done, err := logAndKey(o, cmd, args[2:], key)
			if err != nil {
				return err
			}
			defer done()
			proof, err := reader.ProveConsistency(fsys, older, newer, key)
			if err != nil {
				return err
			}
			return printProof(o, cmd, proofView{Older: &older, Newer: &newer, Key: key, Proof: string(proof)})
		},
	}
	cmd.Flags().StringVar(&key, "key", "", keyToProve)
	return cmd
}

func newLogVerifyConsistency(o *cli.Options) *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use:   "verify-consistency --key KEY PROOF OLDER NEWER",
		Short: "Verify that one checkpoint continues another",
		Long: `Verify-consistency verifies the output of vouch log consistency against two
checkpoints of the log, each in a file: that the newer continues the older.`,
		Example: `  vouch log verify-consistency --key "$KEY" consistency.txt checkpoint.old checkpoint.new`,
		Args:    cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			if key == "" {
				return cli.Usagef("--key is required; vouch log verify prints it")
			}
			var files [3][]byte
			for i, name := range args {
				read := os.ReadFile
				if i == 0 {
					read = func(name string) ([]byte, error) { return readProof(cmd, name) }
				}
				data, err := read(name)
				if err != nil {
					return err
				}
				files[i] = data
			}
			if err := reader.CheckConsistency(files[0], files[1], files[2], key); err != nil {
				return err
			}
			return o.Print(cmd, map[string]bool{"consistent": true}, func(w io.Writer) {
				fmt.Fprintf(w, "%s continues %s\n", args[2], args[1])
			})
		},
	}
	cmd.Flags().StringVar(&key, "key", "", keyToVerify)
	return cmd
}
