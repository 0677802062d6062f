package cli

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestProgressShowsAndLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	var shown bytes.Buffer
	ended := make(chan struct{})
	var once sync.Once
	showProgress(&shown, time.Millisecond, func() string {
		once.Do(func() { close(ended) })
		return "12 files"
	}, ended)
	if got := shown.String(); !strings.HasPrefix(got, "\r\x1b[K12 files") || !strings.HasSuffix(got, "\r\x1b[K") {
		t.Errorf("shown is %q", got)
	}
}
