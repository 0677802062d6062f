package fetched

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// keys are AWS credentials.
type keys struct{ id, secret, token string }

// A scope is what a signature is good for, besides a day.
type scope struct{ region, service string }

const signatureV4 = "AWS4-HMAC-SHA256"

// sign signs a request to the root of a host, without a query, by adding to its
// header: AWS Signature Version 4, as IAM's user guide says ("Create a signed
// AWS API request"). Everything in the header is signed.
func sign(method, to string, header http.Header, body []byte, k keys, s scope, now time.Time) error {
	u, err := url.Parse(to)
	if err != nil || u.Host == "" || u.Path != "/" || u.RawQuery != "" {
		return errors.New("signing for AWS: only the root of a host is asked")
	}
	stamp := now.UTC().Format("20060102T150405Z")
	header.Set("X-Amz-Date", stamp)
	if k.token != "" {
		header.Set("X-Amz-Security-Token", k.token)
	}
	names, canonical := canonicalHeaders(header, u.Host)
	request := strings.Join([]string{method, "/", "", canonical, names, digest(body)}, "\n")
	day := stamp[:8]
	credential := strings.Join([]string{day, s.region, s.service, "aws4_request"}, "/")
	text := strings.Join([]string{signatureV4, stamp, credential, digest([]byte(request))}, "\n")
	key := []byte("AWS4" + k.secret)
	for _, part := range []string{day, s.region, s.service, "aws4_request", text} {
		key = mac(key, part)
	}
	header.Set("Authorization", signatureV4+" Credential="+k.id+"/"+credential+", SignedHeaders="+names+", Signature="+hex.EncodeToString(key))
	return nil
}

// canonicalHeaders returns the names of all headers and their lines, in order.
func canonicalHeaders(header http.Header, host string) (names, lines string) {
	values := map[string]string{"host": host}
	for name, v := range header {
		values[strings.ToLower(name)] = strings.Join(strings.Fields(strings.Join(v, ",")), " ")
	}
	var sorted []string
	for name := range values {
		sorted = append(sorted, name)
	}
	slices.Sort(sorted)
	var b strings.Builder
	for _, name := range sorted {
		b.WriteString(name + ":" + values[name] + "\n")
	}
	return strings.Join(sorted, ";"), b.String()
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}
