package admin

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/state"
)

// openState takes the state directory of a daemon that is stopped.
func openState(path, command string) (*state.Dir, error) {
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		owner := "#" + strconv.Itoa(int(st.Uid))
		if u, err := user.LookupId(strconv.Itoa(int(st.Uid))); err == nil {
			owner = u.Username
		}
		return nil, fmt.Errorf("%s belongs to the user %s; run this as that user: sudo -u '%s' %s", path, owner, owner, command)
	}
	dir, err := state.Open(path)
	if errors.Is(err, state.ErrInUse) {
		return nil, fmt.Errorf("%w; stop the daemon first, with: systemctl stop vouchd", err)
	}
	return dir, err
}

// resetPrefix begins the names of directories with former states.
const resetPrefix = "before-reset-"

// A resetView says what became of the former state.
type resetView struct {
	MovedTo string   `json:"moved_to"`
	Moved   []string `json:"moved"`
}

func newNodeReset(o *cli.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "reset",
		Short: "Start over with new keys, after the TPM was cleared or replaced",
		Long: `Reset moves all that the stopped daemon has in its state directory into a
directory beside it, and deletes nothing. At its next start the daemon makes new
keys in the TPM and begins a new log. The former log can still be verified where
it was moved to. Moving the files back undoes it, as long as the TPM is the one
that they were made in.

After a reset this host is a new one to everybody: a standalone trust domain has
a new root, an enrolled host has to be enrolled again.`,
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
					fmt.Fprintf(w, "%s is empty already\n", c.StateDir)
					return
				}
				fmt.Fprintf(w, "Moved %s to %s. The daemon makes new keys when it starts.\n", strings.Join(view.Moved, ", "), view.MovedTo)
			})
		},
	}
}

func reset(path string, now time.Time, command string) (resetView, error) {
	dir, err := openState(path, command)
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
			return view, fmt.Errorf("%w; what was moved already is in %s: run it again for the rest", err, view.MovedTo)
		}
		view.Moved = append(view.Moved, e.Name())
	}
	return view, nil
}

func newNodeReseal(o *cli.Options) *cobra.Command {
	var bindTo string
	cmd := &cobra.Command{
		Use:   "reseal APPROVAL",
		Short: "Add a boot state in which the node's keys may be used",
		Long: `Reseal adds a boot state that an authority approved (vouch authority approve-boot),
such as the one that an update will boot into. The keys stay as they are, and so
does what was sealed.

Keys are bound to boot states when they are made. --bind-to makes them so: with the
daemon stopped and its state directory empty (see vouch node reset), it makes the
node's keys, for boot states that the authority with this root certificate
approves. It is also the way to add a state when the daemon cannot start, because
the machine is in none that is approved.`,
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
	cmd.Flags().StringVar(&bindTo, "bind-to", "", "the approving authority's root certificate, a PEM `file`; the daemon must be stopped")
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
	dir, err := openState(c.StateDir, cmd.CommandPath())
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
