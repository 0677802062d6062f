package spire

import (
	"testing"
	"time"
)

func TestWhatFailedTogetherIsNotTriedTogether(t *testing.T) {
	t.Parallel()
	for failures := 1; failures < 100; failures++ {
		most := min(syncEvery<<min(failures, 10), lastRetry)
		least, last := lastRetry*2, time.Duration(0)
		for range 1000 {
			d := retryAfter(failures)
			least, last = min(least, d), max(last, d)
		}
		if least < most/2 || last > most*3/2 || last-least < most/2 {
			t.Errorf("after %d failures all try again after %v to %v", failures, least, last)
		}
	}
	now := time.Now()
	var r retry
	for n := 1; n < 5; n++ {
		if r = r.failed(now); r.failures != n || !r.next.After(now) {
			t.Errorf("after %d failures %+v", n, r)
		}
	}
}
