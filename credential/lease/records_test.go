package lease

import (
	"slices"
	"strings"
	"testing"
)

func TestScopesOfAnEventAreBounded(t *testing.T) {
	t.Parallel()
	short := []string{"a=1", "b=2"}
	if got := bound(short); !slices.Equal(got, short) {
		t.Errorf("%q became %q", short, got)
	}
	long := slices.Repeat([]string{strings.Repeat("x", 500)}, 32)
	got := bound(long)
	if n := len(strings.Join(got, "")); n > maxScope+128 || !strings.HasPrefix(got[len(got)-1], "and 26 more, sha256:") {
		t.Errorf("%d bytes, the last %q", n, got[len(got)-1])
	}
	if other := bound(append(slices.Clone(long[1:]), "y")); other[len(other)-1] == got[len(got)-1] {
		t.Error("the digest is not over what is left out")
	}
}
