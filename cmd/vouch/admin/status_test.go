package admin

import (
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestAnUnreachableDaemonIsExplainedByWhyItIs(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err  error
		want string
		not  string
	}{
		{fs.ErrPermission, "run this with sudo", "running?"},
		{syscall.EACCES, "run this with sudo", "running?"},
		{syscall.ENOENT, "is vouchd running?", "sudo"},
		{syscall.ECONNREFUSED, "is vouchd running?", "sudo"},
		{syscall.EPIPE, "try: vouch doctor", "running?"},
	} {
		got := unreachable(fmt.Errorf("asking: %w", &net.OpError{Op: "dial", Err: tt.err})).Error()
		if !strings.Contains(got, tt.want) || strings.Contains(got, tt.not) {
			t.Errorf("%v: got %q, want %q and not %q", tt.err, got, tt.want, tt.not)
		}
	}
	_, err := net.Dial("unix", filepath.Join(t.TempDir(), "none"))
	if got := unreachable(err).Error(); !strings.Contains(got, "is vouchd running?") {
		t.Errorf("got %q", got)
	}
}
