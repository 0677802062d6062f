package door

import "golang.org/x/sync/semaphore"

// The bounds of what one user may have at a time, so that the others have the rest.
const (
	maxConnsEach     = 4096
	maxRequestsEach  = 4096
	maxAskedEach     = 64       // requests that the daemon is deciding
	maxInspectedEach = 32 << 20 // bytes of content that rules look at
)

// A user is one who has connections open.
type user struct {
	conns                      int // guarded by server.mu
	requests, asked, inspected *semaphore.Weighted
}

func newUser() *user {
	return &user{
		requests:  semaphore.NewWeighted(maxRequestsEach),
		asked:     semaphore.NewWeighted(maxAskedEach),
		inspected: semaphore.NewWeighted(maxInspectedEach),
	}
}
