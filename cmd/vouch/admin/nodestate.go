package admin

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

// resetPrefix begins the names of directories with former states.
const resetPrefix = "before-reset-"

// A resetView says where the former state went.
type resetView struct {
	MovedTo string   `json:"moved_to"`
	Moved   []string `json:"moved"`
}

func newNodeReset(o *cli.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "reset",
		Short: "Start over after the TPM was cleared or replaced",
		Long: `Reset moves the stopped daemon's state into a new directory within the state directory,
and deletes nothing. At its next start the daemon makes new keys in the TPM and begins
a new log. You can still verify the old log where it now is. Moving the files back
undoes the reset if the TPM is the one they were made in.

After a reset this is a new host to everyone: a standalone trust domain has a new root,
and an enrolled host must be enrolled again.`,
		Example: `  systemctl stop vouchd && vouch node reset && systemctl start vouchd`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.Load()
			if err != nil {
				return err
			}
			view, err := reset(c.StateDir, time.Now(), cmd.CommandPath())
			if err != nil {
				return err
			}
			return o.Print(cmd, view, func(w io.Writer) {
				if len(view.Moved) == 0 {
					fmt.Fprintf(w, "%s is already empty\n", c.StateDir)
					return
				}
				fmt.Fprintf(w, "Moved %s to %s. The daemon makes new keys when it starts.\n", strings.Join(view.Moved, ", "), view.MovedTo)
			})
		},
	}
}

func reset(path string, now time.Time, command string) (resetView, error) {
	dir, err := cli.OpenState(path, command)
	if err != nil {
		return resetView{}, err
	}
	defer dir.Close()
	entries, err := os.ReadDir(path)
	if err != nil {
		return resetView{}, err
	}
	view := resetView{Moved: []string{}}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), resetPrefix) {
			continue
		}
		if view.MovedTo == "" {
			view.MovedTo = dir.Path(resetPrefix + now.UTC().Format("20060102T150405.000Z"))
			if err := os.Mkdir(view.MovedTo, 0o700); err != nil {
				return resetView{}, err
			}
		}
		if err := os.Rename(dir.Path(e.Name()), filepath.Join(view.MovedTo, e.Name())); err != nil {
			return view, fmt.Errorf("%w; some files are already in %s: run this again to move the rest", err, view.MovedTo)
		}
		view.Moved = append(view.Moved, e.Name())
	}
	return view, nil
}

func newNodeReseal(o *cli.Options) *cobra.Command {
	var bindTo string
	cmd := &cobra.Command{
		Use:   "reseal APPROVAL",
		Short: "Add a boot state that may use the node's keys",
		Long: `Reseal adds a boot state approved by the organisation's root CA (vouch authority
approve-boot), such as the one an update will boot into. Keys and sealed secrets are
unchanged.

Keys can be bound to boot states only when they are made. With the daemon stopped and
its state directory empty (see vouch node reset), --bind-to makes the node's keys, bound
to boot states approved by the root CA with this certificate. Use it also to add a state
when the daemon cannot start because the machine is in no approved one.`,
		Example: `  vouch node reseal approval.json
  vouch node reseal approval.json --bind-to root.pem`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			approval, err := cli.ReadDocument(cmd, args[0], cli.MaxSmallDocument)
			if err != nil {
				return err
			}
			if bindTo != "" {
				err = bindKeys(o, cmd, bindTo, approval)
			} else if client, adminErr := o.Admin(); adminErr != nil {
				err = adminErr
			} else {
				err = client.Node.Reseal(cmd.Context(), approval)
			}
			if err != nil {
				return err
			}
			return o.Print(cmd, map[string]bool{"added": true}, func(w io.Writer) {
				fmt.Fprintln(w, "The node's keys may be used in this boot state.")
			})
		},
	}
	cmd.Flags().StringVar(&bindTo, "bind-to", "", "the approving root CA's certificate, a PEM `file`; the daemon must be stopped")
	return cmd
}

// bind makes or loads bound keys while the daemon is stopped.
func bindKeys(o *cli.Options, cmd *cobra.Command, rootFile string, approval []byte) error {
	root, err := cli.ReadCertificate(cmd, rootFile)
	if err != nil {
		return err
	}
	key, ok := root.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return fmt.Errorf("%s: its key is not an ECDSA key", rootFile)
	}
	c, err := o.Load()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		return err
	}
	dir, err := cli.OpenState(c.StateDir, cmd.CommandPath())
	if err != nil {
		return err
	}
	defer dir.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Minute)
	defer cancel()
	tpm, err := node.Open(ctx, c.TPM)
	if err != nil {
		return err
	}
	defer tpm.Close()
	_, err = node.LoadBound(ctx, tpm, dir, key, approval)
	return err
}
