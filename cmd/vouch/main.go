// Command vouch is for agents, administrators and auditors: it fetches
// identities, asks the daemon what it does and why, and verifies its log.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/vouchd/vouchd/secret"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := secret.KeepOutOfDumps(); err != nil { // some commands hold credentials
		fmt.Fprintln(os.Stderr, "vouch:", err)
		os.Exit(1)
	}
	os.Exit(run(ctx, argsFor(os.Args), os.Stdout, os.Stderr))
}
