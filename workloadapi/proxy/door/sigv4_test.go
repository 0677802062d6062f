package door

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/credential/policy"
)

// TestContentIsSignedAsTheUpstreamCanCheckIt: what only the caller's key could have signed
// goes on unsigned, and what cannot is refused.
func TestContentIsSignedAsTheUpstreamCanCheckIt(t *testing.T) {
	t.Parallel()
	const chunk = "5" + signature + "tides\r\n0" + signature
	digest := strings.Repeat("0a", 32)
	for _, tt := range []struct {
		service, digest, content string
		want, sent               string // an empty digest: refused
		length                   int64
	}{
		{"s3", digest, "tides", digest, "tides", 5},
		{"s3", "", "tides", unsigned, "tides", 5},
		{"s3", "", "", emptySHA256, "", 0},
		{"s3", unsignedTrailer, "5\r\ntides\r\n0\r\n\r\n", unsignedTrailer, "5\r\ntides\r\n0\r\n\r\n", 15},
		{"s3", chunks, chunk + "\r\n", unsigned, "tides", 5},
		{"s3", chunksTrailer, chunk + "x-amz-checksum-crc32:a\r\n\r\n", unsignedTrailer, "5\r\ntides\r\n0\r\nx-amz-checksum-crc32:a\r\n\r\n", -1},
		{"s3", "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD", chunk, "", "", 0},
		{"sqs", digest, "tides", digest, "tides", 5},
		{"sqs", chunks, chunk, "", "", 0},
		{"sqs", "", "tides", "", "", 0},
	} {
		out, err := http.NewRequest(http.MethodPut, "https://upstream.example/tides/x", strings.NewReader(tt.content))
		if err != nil {
			t.Fatal(err)
		}
		if tt.content == "" {
			out.Body = nil
		}
		out.Header.Set("X-Amz-Content-Sha256", tt.digest)
		out.Header.Set("X-Amz-Decoded-Content-Length", "5")
		out.Header.Set("Content-Encoding", "aws-chunked,gzip")
		out.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=the-callers")
		err = sign(out, &policy.SigV4{Region: "r", Service: tt.service, AccessKeyID: "AKIATIDES"}, map[string]string{"value": "secret"})
		if no := (*refusal)(nil); tt.want == "" {
			if !errors.As(err, &no) || no.Status != http.StatusBadRequest {
				t.Errorf("%s %s: %v", tt.service, tt.digest, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s %s: %v", tt.service, tt.digest, err)
			continue
		}
		var sent []byte
		if out.Body != nil {
			if sent, err = io.ReadAll(out.Body); err != nil {
				t.Errorf("%s %s: %v", tt.service, tt.digest, err)
			}
		}
		if got := out.Header.Get("X-Amz-Content-Sha256"); got != tt.want || string(sent) != tt.sent || out.ContentLength != tt.length ||
			!strings.HasPrefix(out.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential=AKIATIDES/") {
			t.Errorf("%s %s: %s, %q of length %d, %v", tt.service, tt.digest, got, sent, out.ContentLength, out.Header)
		}
		if encoding := out.Header.Get("Content-Encoding"); tt.digest == chunks && (encoding != "gzip" || out.Header.Get("X-Amz-Decoded-Content-Length") != "") {
			t.Errorf("without chunks its headers are %v", out.Header)
		}
	}
}

func TestAccessKeyOfAnyBrokerSigns(t *testing.T) {
	t.Parallel()
	for _, fields := range []map[string]string{
		{"access_key_id": "A", "secret_access_key": "s", "session_token": "token"}, // federation
		{"access_key": "A", "secret_key": "s", "security_token": "token"},          // Vault
	} {
		out, err := http.NewRequest(http.MethodGet, "https://upstream.example/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := sign(out, &policy.SigV4{Region: "r", Service: "s3"}, fields); err != nil || out.Header.Get("X-Amz-Security-Token") != "token" {
			t.Errorf("%v: %v (%v)", fields, out.Header, err)
		}
	}
	out, _ := http.NewRequest(http.MethodGet, "https://upstream.example/", nil)
	if err := sign(out, &policy.SigV4{Region: "r", Service: "s3"}, map[string]string{"value": "s"}); err == nil {
		t.Error("it is signed without an access key's ID")
	}
}
