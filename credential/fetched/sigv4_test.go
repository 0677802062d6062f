package fetched

import (
	"net/http"
	"testing"
	"time"
)

// The cases are of AWS's Signature Version 4 test suite, by their names there.
func TestSignaturesAreThoseOfAWSsTestSuite(t *testing.T) {
	t.Parallel()
	now := time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC)
	for _, tt := range []struct {
		name, method string
		header       http.Header
		body, token  string
		signed       string
		want         string
	}{
		{"get-vanilla", "GET", http.Header{}, "", "", "host;x-amz-date", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
		{"post-vanilla", "POST", http.Header{}, "", "", "host;x-amz-date", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
		{"post-x-www-form-urlencoded", "POST", http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, "Param1=value1", "",
			"content-type;host;x-amz-date", "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"},
		{"get-header-value-trim", "GET", http.Header{"My-Header1": {" value1"}, "My-Header2": {` "a   b   c"`}}, "", "",
			"host;my-header1;my-header2;x-amz-date", "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736"},
		{"post-sts-header-before", "POST", http.Header{}, "", "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA==",
			"host;x-amz-date;x-amz-security-token", "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead"},
	} {
		k := keys{id: "AKIDEXAMPLE", secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", token: tt.token}
		if err := sign(tt.method, "https://example.amazonaws.com/", tt.header, []byte(tt.body), k, scope{"us-east-1", "service"}, now); err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		want := "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=" + tt.signed + ", Signature=" + tt.want
		if got := tt.header.Get("Authorization"); got != want {
			t.Errorf("%s:\n got %s\nwant %s", tt.name, got, want)
		}
	}
	for _, to := range []string{"https://example.amazonaws.com/path", "https://example.amazonaws.com/?a=b", "/"} {
		if err := sign("GET", to, http.Header{}, nil, keys{}, scope{}, now); err == nil {
			t.Errorf("%s was signed as if it were the root", to)
		}
	}
}
