package spire

import "time"

func init() { syncEvery, settle, lastRetry = 200*time.Millisecond, 2*time.Second, 2*time.Second }

// AsShipped has keepers that are opened from now on wait as long as they do in the daemon.
func AsShipped() { syncEvery, settle, lastRetry = 5*time.Second, 10*time.Second, 2*time.Minute }
