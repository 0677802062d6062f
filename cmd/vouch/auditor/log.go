package auditor

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/audit/reader"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

func newLog(o *cli.Options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "log",
		Short: "Read and verify the attestation log",
		Long: `The log commands need no daemon, no TPM and no network: they work on the log's
directory, a copy of it or an archive. Without DIR they read this host's log.`,
	}
	cmd.AddCommand(
		newLogShow(o), newLogExplain(o), newLogReport(o), newLogVerify(o), newLogArchive(o), newLogRestart(o),
		newLogProve(o), newLogVerifyProof(o), newLogConsistency(o), newLogVerifyConsistency(o),
		deprecatedAs("check-proof --key KEY FILE", newLogVerifyProof(o), "vouch log verify-proof"),
		deprecatedAs("check-consistency --key KEY PROOF OLDER NEWER", newLogVerifyConsistency(o), "vouch log verify-consistency"),
	)
	return cmd
}

// deprecatedAs gives a command an earlier name, which is a [cli.Deprecated] alias.
func deprecatedAs(use string, cmd *cobra.Command, instead string) *cobra.Command {
	cmd.Use = use
	return cli.Deprecated(cmd, instead)
}

// OpenLog opens the log named by the arguments, a directory or an archive, else
// this host's. The caller calls done when it has read it.
func OpenLog(o *cli.Options, args []string) (fsys fs.FS, name string, done func() error, err error) {
	if len(args) > 0 {
		name = args[0]
	} else {
		c, err := o.Load()
		if err != nil {
			return nil, "", nil, fmt.Errorf("%w; name the log's directory, or the configuration with --config", err)
		}
		name = filepath.Join(c.StateDir, "log")
	}
	fsys, done, err = openLog(name)
	return fsys, name, done, err
}

// openLog opens a log's directory, or an archive of one, also where the log is
// somewhere below: a copy of the state directory, or what tar makes of it.
func openLog(name string) (fsys fs.FS, done func() error, err error) {
	fsys, done, err = openCopy(name)
	if err != nil {
		return nil, nil, err
	}
	if fsys, err = reader.FindLog(fsys); err != nil {
		done()
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	return fsys, done, nil
}

// openCopy opens a directory or an archive.
func openCopy(name string) (fsys fs.FS, done func() error, err error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, nil, err
	}
	if info.IsDir() {
		dir, err := reader.OpenDir(name)
		if err != nil {
			return nil, nil, err
		}
		return dir, dir.Close, nil
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is neither a log's directory nor an archive", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, err
	}
	fsys, err = reader.ReadArchive(f, info.Size())
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	return fsys, f.Close, nil
}

func newLogVerify(o *cli.Options) *cobra.Command {
	var traced bool
	var checkpoint string
	var machines []string
	var ask reader.VerifyOptions
	cmd := &cobra.Command{
		Use:   "verify [LOG...]",
		Short: "Verify a log back to the TPM",
		Long: `Verify checks a whole log or a copy of one: every record, the tree over them, each
signature, each anchor's counter, that each issued SVID was signed by a key certified
in the log, and that the machine's keys are in one TPM. It exits 0 only if everything
holds; otherwise it says what is wrong in which record, and what that means. It needs
no TPM and no network.

A log proves that one TPM is behind it, and names it. To verify that it is the TPM of
a machine you know, use --node with the output of vouch node appraise or vouch node
verify --output json for that machine: every statement in the log must then be by its
keys.

An older copy of a log looks complete. To detect one, give something you know from
elsewhere: a checkpoint (--checkpoint), a value the TPM's counter has had (--counter),
or a witness that must have signed (--witness).

Several logs, or a folder of them, are verified at once, with one line for each, the
worst first. With --node for several files, or a folder of them, each log must be of
one of these machines, which is found by its endorsement key.`,
		Example: `  vouch log verify
  vouch log verify --trace ./copy-of/var/lib/vouchd/log
  vouch log verify ./copy-of/var/lib/vouchd/log --node machine.json
  vouch log verify log-2026-11.tar --from 120064
  vouch log verify --checkpoint seen-in-october --witness "$WITNESS_KEY" ./copy
  vouch log verify --live --output json
  vouch log verify --node machines/ logs/`,
		RunE: func(cmd *cobra.Command, args []string) error {
			known, err := readKnownMachines(cmd, machines)
			if err != nil {
				return err
			}
			for _, key := range ask.Witnesses {
				if _, err := reader.ParseWitness(key); err != nil {
					return cli.Usage(err)
				}
			}
			logs, err := logsIn(args)
			if err != nil {
				return err
			}
			if len(logs) > 1 {
				for _, flag := range []string{"trace", "key", "checkpoint", "counter", "from"} {
					if cmd.Flags().Changed(flag) {
						return cli.Usagef("--%s is about one log, and these are %d", flag, len(logs))
					}
				}
				return verifyFleet(cmd, o, logs, ask, known)
			}
			fsys, name, done, err := OpenLog(o, logs)
			if err != nil {
				return err
			}
			defer done()
			tpm := &tpmVerifier{known: known, any: len(known) > 1}
			ask.TPM = tpm
			if checkpoint != "" {
				if ask.Checkpoint, err = readCheckpoint(cmd, checkpoint); err != nil {
					return err
				}
			}
			p, stop := startProgress(cmd)
			report, err := reader.Verify(cmd.Context(), p.of(fsys), ask)
			stop()
			if err != nil {
				return fmt.Errorf("reading the log in %s: %w", name, err)
			}
			view := verifyView{Report: report, MachineKnown: tpm.is != nil && report.OK}
			if err := o.Print(cmd, view, func(w io.Writer) { view.writeText(w, tpm) }); err != nil {
				return err
			}
			if !report.OK {
				return cli.ErrSaid
			}
			if traced && o.Output == "text" {
				return trace(cmd, fsys, report)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&ask.Live, "live", false, "the log is still being written, so its end may not be anchored yet")
	cmd.Flags().BoolVar(&traced, "trace", false, "print how each SVID traces back to the TPM")
	cmd.Flags().StringVar(&ask.Key, "key", "", "the `key` that must have signed the log (default the one the log names)")
	cmd.Flags().StringVar(&checkpoint, "checkpoint", "", "a `file` with a signed checkpoint that the log must contain")
	cmd.Flags().StringArrayVar(&ask.Witnesses, "witness", nil, "the `key` of a witness that must have signed the log; may be repeated")
	cmd.Flags().Uint64Var(&ask.Counter, "counter", 0, "a `value` the TPM's counter is known to have had in this log")
	cmd.Flags().Uint64Var(&ask.From, "from", 0, "first `record` of a partial copy, such as an archive")
	cmd.Flags().StringArrayVar(&machines, "node", nil, "a `file` with the JSON result of vouch node appraise or verify for the machine whose log it must be, or a folder of such files; may be repeated")
	return cmd
}

// readCheckpoint reads a signed checkpoint, or what a log keeps of a witness:
// the witness's key, an empty line and the checkpoint that it signed.
func readCheckpoint(cmd *cobra.Command, file string) ([]byte, error) {
	b, err := cli.ReadDocument(cmd, file, cli.MaxSmallDocument)
	if err != nil {
		return nil, err
	}
	if _, rest, _ := bytes.Cut(b, []byte("\n\n")); bytes.Contains(rest, []byte("\n\n")) {
		b = rest
	}
	return append(b, '\n'), nil
}

// VerifyLive verifies a log that may still be written, of whichever machine.
func VerifyLive(ctx context.Context, fsys fs.FS) (*reader.Report, error) {
	return reader.Verify(ctx, fsys, reader.VerifyOptions{Live: true, TPM: new(tpmVerifier)})
}

// A tpmVerifier gives the log's verification what attest/node can tell of a
// statement and its anchors.
type tpmVerifier struct {
	known   []*knownMachine // of one of which the log must be; none: anybody's
	any     bool            // which of them, its endorsement key tells
	is      *knownMachine   // it is of this one
	machine *appraisal.Verified
}

// Statement checks the machine's keys.
func (v *tpmVerifier) Statement(statement []byte, logKey ed25519.PublicKey) (audit.NodeFacts, error) {
	machine, err := appraisal.VerifyStatement(statement, logKey)
	if err != nil {
		return audit.NodeFacts{}, err
	}
	if v.is = nil; len(v.known) > 0 {
		if v.is, err = v.find(machine); err != nil {
			return audit.NodeFacts{}, err
		}
	}
	v.machine = machine
	return audit.NodeFacts{EKSHA256: machine.EKSHA256, AKName: machine.AKName, NodeKey: machine.NodeKey, Born: machine.Born}, nil
}

// find returns the known machine that a statement is by the keys of. If only one is
// known, it must be that.
func (v *tpmVerifier) find(machine *appraisal.Verified) (*knownMachine, error) {
	err := fmt.Errorf("the log is of a machine that is not among those of --node: none has its endorsement key %s", machine.EKSHA256)
	for _, m := range v.known {
		if v.any && m.EKSHA256 != machine.EKSHA256 {
			continue
		}
		if err = m.is(machine); err == nil {
			return m, nil
		}
	}
	return nil, err
}

// Anchor checks an anchor of the machine whose statement was checked last.
func (v *tpmVerifier) Anchor(anchor []byte, digest [32]byte) (audit.AnchorFacts, error) {
	if v.machine == nil {
		return audit.AnchorFacts{}, errors.New("no statement says which machine made it")
	}
	facts, err := v.machine.Anchor(anchor, digest)
	if err != nil {
		return audit.AnchorFacts{}, err
	}
	return audit.AnchorFacts{Counter: facts.Counter, Resets: facts.Resets, Index: v.machine.CounterName()}, nil
}

// Quote checks a quote of that machine over the digest of an authority key.
func (v *tpmVerifier) Quote(quote []byte, digest [32]byte) error {
	if v.machine == nil {
		return errors.New("no statement says which machine made it")
	}
	_, _, err := v.machine.Quote(quote, digest)
	return err
}
