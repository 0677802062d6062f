//go:build clients

package loopback

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

func TestJavaTakesTheAuthorityForItsHostsAlone(t *testing.T) {
	a, err := NewAuthority([]string{"api.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	write(t, ca, a.PEM())
	for host, want := range map[string]bool{"api.example.com": true, "evil.example": false} {
		port := strconv.Itoa(serveTLS(t, a.forge(t, host)))
		if out, err := exec.Command("java", "../testdata/Ask.java", ca, host, port).CombinedOutput(); (err == nil) != want {
			t.Errorf("Java says of %s: %s (%v)", host, out, err)
		}
	}
}
