// Command vouchd-spire is a plug-in of SPIRE's server: it admits hosts by their TPM.
package main

import (
	"fmt"
	"os"

	"github.com/vouchd/vouchd/packaging/version"
	"github.com/vouchd/vouchd/spireplugin"
)

const help = `vouchd-spire is a plug-in of SPIRE's server, NodeAttestor and CredentialComposer in one. It
admits hosts that run vouchd by their TPM, as vouch node appraise judges them, and sees to
it that an agent's SVID is for a key of that TPM.

spire-server starts it, once for each of the two; spire-plugin.md has the settings. On the
hosts authority.spire.attestor is vouchd.

Usage:
  vouchd-spire [flags]

Flags:
  -h, --help      help for vouchd-spire
      --version   version of vouchd-spire
`

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "--help", "-h", "help":
			fmt.Print(help)
			return
		case "--version", "version":
			fmt.Print(version.Text("vouchd-spire"))
			return
		}
		fmt.Fprintf(os.Stderr, "vouchd-spire: unknown argument %q; see vouchd-spire --help\n", os.Args[1])
		os.Exit(2)
	}
	if err := spireplugin.Serve(os.Getenv, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "vouchd-spire:", err)
		os.Exit(1)
	}
}
