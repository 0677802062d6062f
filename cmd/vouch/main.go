// Command vouch is for agents, administrators and auditors: it fetches
// identities, asks the daemon what it does and why, and verifies its log.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, argsFor(os.Args), os.Stdout, os.Stderr))
}
