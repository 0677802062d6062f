package door

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/vouchd/vouchd/credential/policy"
)

// What stands for the digest of content that is not signed as a whole. S3 takes it;
// other services want the content's digest.
const (
	unsigned        = "UNSIGNED-PAYLOAD"                           // TLS protects it
	unsignedTrailer = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"         // and a checksum after it
	chunks          = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"         // each chunk is signed
	chunksTrailer   = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" // and the checksum after them
)

// emptySHA256 is the digest of no content.
const emptySHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// digestHeader has the digest of content. Clients of S3 send it; those of other services
// sign with one that they do not send.
const digestHeader = "X-Amz-Content-Sha256"

// wantsDigest reports whether the content has to be read for its signature.
func wantsDigest(p *policy.Policy, r *http.Request) bool {
	s := p.Slot.SigV4
	return s != nil && s.Service != "s3" && r.Header.Get(digestHeader) == ""
}

// sign signs a request as AWS does (Signature Version 4). Headers that a caller's SDK has
// signed with its placeholder are made anew, and content that it has signed chunk by chunk
// goes on without those signatures.
func sign(out *http.Request, s *policy.SigV4, fields map[string]string) error {
	c := aws.Credentials{
		AccessKeyID:     cmp.Or(s.AccessKeyID, fields["access_key_id"], fields["access_key"]),
		SecretAccessKey: cmp.Or(fields["secret_access_key"], fields["secret_key"]),
		SessionToken:    cmp.Or(fields["session_token"], fields["security_token"]),
	}
	if s.AccessKeyID != "" {
		c.SecretAccessKey = cmp.Or(c.SecretAccessKey, fields["value"])
	}
	if c.AccessKeyID == "" || c.SecretAccessKey == "" {
		return errors.New("the credential has no access_key_id and secret_access_key, which signing needs")
	}
	digest := out.Header.Get(digestHeader)
	switch b, err := hex.DecodeString(digest); {
	case out.Body == nil:
		digest = emptySHA256
	case err == nil && len(b) == 32: // of what is sent, as the caller says; the upstream checks it
	case s.Service != "s3":
		return refuse(http.StatusBadRequest, "content", "the request has no digest of its content in X-Amz-Content-Sha256, which %.20s needs", s.Service)
	case digest == unsignedTrailer:
	case digest == chunks:
		if err := withoutChunks(out); err != nil {
			return err
		}
		digest = unsigned
	case digest == chunksTrailer:
		out.Body, out.ContentLength = &chunked{ReadCloser: out.Body, framed: true}, -1
		digest = unsignedTrailer
	case strings.HasPrefix(digest, "STREAMING-"):
		return refuse(http.StatusBadRequest, "content", "the content is signed as %.60q, which cannot be signed anew; use %s", digest, unsignedTrailer)
	default:
		digest = unsigned
	}
	for _, h := range []string{"Authorization", "X-Amz-Date", "X-Amz-Security-Token", "Amz-Sdk-Invocation-Id", "Amz-Sdk-Request"} {
		out.Header.Del(h)
	}
	out.Header.Set(digestHeader, digest)
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = s.Service == "s3" })
	return signer.SignHTTP(context.Background(), c, out, digest, s.Service, s.Region, time.Now())
}
