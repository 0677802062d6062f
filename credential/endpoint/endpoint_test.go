package endpoint

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/vouchd/vouchd/credential"
)

func TestCheckURLWantsHTTPS(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"https://a", "https://a:8443/b?c=d"} {
		if err := CheckURL(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "a", "http://a", "https://", "https://u:p@a", "https://a#b", "file:///x", "https://a\nb", "://"} {
		if CheckURL(bad) == nil {
			t.Errorf("%q is an endpoint", bad)
		}
	}
}

func TestParseToken(t *testing.T) {
	t.Parallel()
	asked := time.Now()
	for _, tt := range []struct {
		name, body string
		lifetime   time.Duration // -1 if it is refused
	}{
		{"a number", `{"access_token":"a","expires_in":60}`, time.Minute},
		{"text", `{"access_token":"a","expires_in":"60"}`, time.Minute},
		{"none", `{"access_token":"a"}`, 0},
		{"zero", `{"access_token":"a","expires_in":0}`, -1},
		{"a list", `{"access_token":"a","expires_in":[60]}`, -1},
		{"ten years", `{"access_token":"a","expires_in":315360000}`, -1},
		{"a token that is a number", `{"access_token":1}`, -1},
		{"a token with a space", `{"access_token":"a b"}`, -1},
		{"a token of another alphabet", `{"access_token":"ä"}`, -1},
		{"a token without end", `{"access_token":"` + strings.Repeat("a", 70_000) + `"}`, -1},
		{"a refresh token of two lines", `{"access_token":"a","refresh_token":"a\nb"}`, -1},
		{"a type of two words", `{"access_token":"a","token_type":"Bearer x"}`, -1},
		{"something after it", `{"access_token":"a"}{}`, -1},
	} {
		got, err := ParseToken([]byte(tt.body), asked)
		switch {
		case tt.lifetime < 0:
			if !errors.Is(err, credential.ErrUpstream) {
				t.Errorf("%s: %+v, %v", tt.name, got, err)
			}
		case err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.lifetime == 0 && !got.NotAfter.IsZero(), tt.lifetime > 0 && !got.NotAfter.Equal(asked.Add(tt.lifetime)):
			t.Errorf("%s: ends at %v", tt.name, got.NotAfter)
		}
	}
}

func TestErrorRepeatsTheCodeAndNothingElse(t *testing.T) {
	t.Parallel()
	const canary = "canary-4f1b"
	for _, tt := range []struct{ name, contentType, body, want string }{
		{"OAuth", "application/json", `{"error":"invalid_grant","error_description":"` + canary + `"}`, ": invalid_grant"},
		{"OAuth with a character set", "application/json; charset=utf-8", `{"error":"invalid_grant"}`, ": invalid_grant"},
		{"a type", "application/json", `{"error":{"type":"authentication_error","message":"` + canary + `"}}`, ": authentication_error"},
		{"a status", "application/json", `{"error":{"code":403,"status":"PERMISSION_DENIED","message":"` + canary + `"}}`, ": PERMISSION_DENIED"},
		{"AWS", "text/xml", `<ErrorResponse><Error><Code>InvalidIdentityToken</Code><Message>` + canary + `</Message></Error></ErrorResponse>`, ": InvalidIdentityToken"},
		{"a code that is no code", "application/json", `{"error":"` + canary + ` and more"}`, ""},
		{"a page", "text/html", canary, ""},
		{"not JSON", "application/json", canary, ""},
		{"a list", "application/json", `{"error":["` + canary + `"]}`, ""},
	} {
		if got := errorCode(tt.contentType, []byte(tt.body)); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestErrorOfAConnectionHasNoURL(t *testing.T) {
	t.Parallel()
	s := httptest.NewTLSServer(http.NotFoundHandler())
	s.Close()
	c := New("")
	defer c.Close()
	_, err := c.Form(t.Context(), s.URL+"/?canary=canary-4f1b", url.Values{}, nil)
	if !errors.Is(err, credential.ErrUpstream) || strings.Contains(err.Error(), "canary") {
		t.Error(err)
	}
}
