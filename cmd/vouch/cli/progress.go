package cli

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"
)

// progressEvery is how often progress shows.
const progressEvery = 250 * time.Millisecond

// Progress shows what say returns on the last line of standard error, from some time on
// until stop is called, if that is a terminal. It leaves nothing behind.
func Progress(cmd *cobra.Command, after time.Duration, say func() string) (stop func()) {
	w := cmd.ErrOrStderr()
	if !IsTerminal(w) {
		return func() {}
	}
	ended := make(chan struct{})
	var showing sync.WaitGroup
	showing.Go(func() { showProgress(w, after, say, ended) })
	return func() {
		close(ended)
		showing.Wait()
	}
}

func showProgress(w io.Writer, after time.Duration, say func() string, ended <-chan struct{}) {
	wait := time.NewTimer(after)
	defer wait.Stop()
	shown := false
	for {
		select {
		case <-wait.C:
			if line := say(); line != "" {
				fmt.Fprintf(w, "\r\x1b[K%s", line)
				shown = true
			}
			wait.Reset(progressEvery)
		case <-ended:
			if shown {
				fmt.Fprint(w, "\r\x1b[K")
			}
			return
		}
	}
}
