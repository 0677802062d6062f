package agent

import (
	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/deliver"
)

// placeFlags defines the flags of a file that is kept fresh.
func placeFlags(p *deliver.Place, cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&p.Path, "write", "", "write to this `file`, replaced atomically")
	f.StringVar(&p.Mode, "mode", "0600", "`mode` of the file")
	f.StringVar(&p.Owner, "owner", "", "`user` that owns the file")
	f.StringVar(&p.Group, "group", "", "`group` of the file")
	f.BoolVar(&p.Follow, "follow", false, "keep running: replace the value before it expires, and remove the file on exit")
	f.StringVar(&p.Signal, "signal", "", "send this `signal`, such as HUP, after replacing a value; requires --pid")
	f.IntVar(&p.PID, "pid", 0, "the `process` to signal; --follow ends when it exits")
	f.StringVar(&p.Command, "exec", "", "run this `command` with sh, for at most a minute, after replacing a value")
	cmd.MarkFlagFilename("write")
}

// fileFlags require --write.
var fileFlags = []string{"mode", "owner", "group", "follow", "signal", "pid", "exec"}
