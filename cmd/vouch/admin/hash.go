package admin

import (
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/attest/process/file"
	"github.com/vouchd/vouchd/cmd/vouch/cli"
)

// A hashView is the selector for a file or a directory.
type hashView struct {
	Path     string `json:"path"`
	Selector string `json:"selector"`
	Manifest string `json:"manifest,omitempty"` // of a directory
}

func newHash(o *cli.Options) *cobra.Command {
	var manifest bool
	cmd := &cobra.Command{
		Use:   "hash PATH",
		Short: "Print the selector for a program, a script or a directory",
		Long: `Hash prints the selector of a registration entry for a program (unix:sha256), a script
(script:sha256) or a directory such as a virtual environment (script:tree_sha256).`,
		Example: `  vouch hash /usr/bin/agent
  vouch hash --manifest /opt/agent/venv`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			views, err := hashOf(cmd, args[0])
			if err != nil {
				return err
			}
			return o.Print(cmd, views, func(w io.Writer) {
				for _, v := range views {
					if manifest {
						fmt.Fprint(w, v.Manifest)
					}
					fmt.Fprintln(w, v.Selector)
				}
			})
		},
	}
	cmd.Flags().BoolVar(&manifest, "manifest", false, "print a directory's manifest first")
	return cmd
}

func hashOf(cmd *cobra.Command, path string) ([]hashView, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		manifest, sum, err := file.HashTree(cmd.Context(), path)
		if err != nil {
			return nil, err
		}
		return []hashView{{path, "script:tree_sha256:" + sum, string(manifest)}}, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	kind := "script:sha256:"
	if program(f) {
		kind = "unix:sha256:"
	}
	return []hashView{{Path: path, Selector: kind + hex.EncodeToString(h.Sum(nil))}}, nil
}

// program reports whether the kernel runs the file itself, not an interpreter.
func program(f *os.File) bool {
	var magic [4]byte
	n, _ := f.ReadAt(magic[:], 0)
	return string(magic[:n]) == elf.ELFMAG
}
