package inventory

import (
	"strings"
	"testing"
	"time"
)

// A file that is made to be slow to read takes no longer than its length lets it.
func TestWorkIsInProportionToTheFile(t *testing.T) {
	for _, f := range finders {
		for _, piece := range []string{
			"A_TOKEN=q7Jx2LmP0sVbT4yN\n", "A_TOKEN=\"", "'", "=", ":", "https://a:", "a: ", "- ", "[", "{", "[\"", "{\"a\":", "-----BEGIN PRIVATE KEY-----", "machine a password q7Jx2LmP0sVbT4yN ",
			"sk_live_q7Jx2LmP0sVbT4yN ", "[a]\npassword = q7Jx2LmP0sVbT4yN\n", "eyJ.eyJ", "#A_TOKEN=", "key = {", "\\\n", "&a [*a,", "| \n",
		} {
			data := []byte(strings.Repeat(piece, 1<<16/len(piece)))
			begun := time.Now()
			ReadFile(f.kind, "/a/b.json", data)
			if d := time.Since(begun); d > 5*time.Second {
				t.Errorf("%s: 64 KiB of %q takes %v", f.kind, piece, d)
			}
		}
	}
}
