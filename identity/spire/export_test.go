package spire

import "time"

func init() { syncEvery, settle = 200*time.Millisecond, 2*time.Second }
