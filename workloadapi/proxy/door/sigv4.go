package door

import (
	"context"
	"encoding/hex"
	"errors"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/vouchd/vouchd/credential/policy"
)

// unsigned stands for the digest of content that is not signed, where TLS protects it.
// S3 takes it; other services want the content's digest.
const unsigned = "UNSIGNED-PAYLOAD"

// emptySHA256 is the digest of no content.
const emptySHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// sign signs a request as AWS does (Signature Version 4). Headers that a caller's SDK has
// signed with its placeholder are made anew.
func sign(out *http.Request, s *policy.SigV4, fields map[string]string) error {
	c := aws.Credentials{
		AccessKeyID: fields["access_key_id"], SecretAccessKey: fields["secret_access_key"], SessionToken: fields["session_token"],
	}
	if c.AccessKeyID == "" || c.SecretAccessKey == "" {
		return errors.New("the credential has no access_key_id and secret_access_key, which signing needs")
	}
	digest := out.Header.Get("X-Amz-Content-Sha256")
	switch b, err := hex.DecodeString(digest); {
	case out.Body == nil:
		digest = emptySHA256
	case err == nil && len(b) == 32: // of what is sent, as the caller says; the upstream checks it
	case s.Service == "s3":
		digest = unsigned
	default:
		return errors.New("the request has no digest of its content in X-Amz-Content-Sha256, which this service needs")
	}
	for _, h := range []string{"Authorization", "X-Amz-Date", "X-Amz-Security-Token", "Amz-Sdk-Invocation-Id", "Amz-Sdk-Request"} {
		out.Header.Del(h)
	}
	out.Header.Set("X-Amz-Content-Sha256", digest)
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = s.Service == "s3" })
	return signer.SignHTTP(context.Background(), c, out, digest, s.Service, s.Region, time.Now())
}
