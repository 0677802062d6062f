// Program minio puts objects by MinIO's SDK, which signs what it sends chunk by chunk
// where there is no TLS.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

func main() {
	log.SetFlags(0)
	u, err := url.Parse(os.Getenv("AWS_ENDPOINT_URL_S3"))
	check(err)
	transport := below{u.EscapedPath()}
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	for name, checksum := range map[string]minio.ChecksumType{"signed": minio.ChecksumNone, "trailer": minio.ChecksumCRC32C} {
		c, err := minio.New(u.Host, &minio.Options{Creds: credentials.NewEnvAWS(), Region: "us-east-1", TrailingHeaders: checksum.IsSet(), BucketLookup: minio.BucketLookupPath, Transport: transport})
		check(err)
		ctx := context.Background()
		_, err = c.PutObject(ctx, "tides", "minio/"+name, bytes.NewReader(content), int64(len(content)), minio.PutObjectOptions{Checksum: checksum})
		check(err)
		o, err := c.GetObject(ctx, "tides", "minio/"+name, minio.GetObjectOptions{})
		check(err)
		got, err := io.ReadAll(o)
		check(err)
		fmt.Println(name, bytes.Equal(got, content))
	}
}

// below has requests go below a path, which MinIO's SDK knows nothing of.
type below struct{ path string }

func (b below) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL = &url.URL{Scheme: r.URL.Scheme, Host: r.URL.Host, Opaque: b.path + r.URL.EscapedPath(), RawQuery: r.URL.RawQuery}
	return http.DefaultTransport.RoundTrip(r)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
