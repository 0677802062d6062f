package bugreport

import (
	"crypto/rand"
	"strings"
	"testing"
)

func TestWhatLooksLikeAKeyIsTakenOut(t *testing.T) {
	t.Parallel()
	secret := rand.Text()
	for _, text := range []string{
		"ghp_" + secret + rand.Text()[:10], "postgres://agent:" + secret + "@db/x", "https://" + secret + "@example.org/", "password=" + secret, `"api_key": "` + secret + `"`,
		"DB_PASSWORD: " + secret, "Authorization: Bearer " + secret, "token='" + secret + "'", "STRIPE_SECRET=" + secret,
	} {
		if got := string(clean([]byte("before " + text + " after"))); strings.Contains(got, secret) || !strings.HasPrefix(got, "before ") || !strings.HasSuffix(got, " after") {
			t.Errorf("%q becomes %q", strings.ReplaceAll(text, secret, "SECRET"), strings.ReplaceAll(got, secret, "SECRET"))
		}
	}
	for _, plain := range []string{
		"EK sha256:ce817abc68dd9ac6d04e39a3e76cad5fb5368224fc1399d393006c16a0ffe4d0", "password_file: /etc/vouchd/db", "OPENAI_API_KEY=vouch:app-openai-api-key",
		"spiffe://example.org/agent/token", "systemctl status vouchd; vouch doctor",
	} {
		if got := string(clean([]byte(plain))); got != plain {
			t.Errorf("%q becomes %q", plain, got)
		}
	}
}

func TestOfWhatIsTooLongTheEndIsKept(t *testing.T) {
	t.Parallel()
	var out tail
	for range 3 * maxPart / 1024 {
		out.Write(make([]byte, 1024))
	}
	out.Write([]byte("the end"))
	if n := len(out.b); n > 2*maxPart+7 || !strings.HasSuffix(string(out.b), "the end") {
		t.Errorf("%d bytes are kept", n)
	}
}
