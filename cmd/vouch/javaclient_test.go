//go:build clients

package main

import (
	"os/exec"
	"strings"
	"testing"
)

func TestJavaVerifiesTheNameInAnSVID(t *testing.T) {
	t.Parallel()
	for name, h := range namedHosts(t) {
		t.Run(name, func(t *testing.T) {
			port, bundle := serveSVID(t, h)
			ask := func(host string) (string, error) {
				out, err := exec.Command("java", "testdata/Ask.java", bundle, host, port).CombinedOutput()
				return string(out), err
			}
			if out, err := ask("www.example.org"); err != nil || !strings.Contains(out, "tides") {
				t.Errorf("java: %s, %v", out, err)
			}
			if out, err := ask("other.example.org"); err == nil || !strings.Contains(out, "No subject alternative DNS name matching other.example.org found") {
				t.Errorf("of another name: %s, %v", out, err)
			}
		})
	}
}
