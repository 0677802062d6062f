// Program s3 does with a bucket what programs do, by the AWS SDK.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/s3/manager"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

const bucket = "tides"

func main() {
	log.SetFlags(0)
	ctx := context.Background()
	cfg, err := config.LoadDefaultConfig(ctx)
	check(err)
	c := s3.NewFromConfig(cfg)
	in := func(key string) *string { return aws.String("go/" + key) }

	_, err = c.PutObject(ctx, &s3.PutObjectInput{Bucket: aws.String(bucket), Key: in("a b+c=d&e/ü~"), Body: strings.NewReader("tides")})
	check(err)
	got, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(bucket), Key: in("a b+c=d&e/ü~")})
	check(err)
	b, err := io.ReadAll(got.Body)
	check(err)
	fmt.Println("get", string(b), *got.ContentLength)

	large := bytes.Repeat([]byte("0123456789abcdef"), 20<<16) // 20 MiB
	_, err = manager.NewUploader(c).Upload(ctx, &s3.PutObjectInput{Bucket: aws.String(bucket), Key: in("large"), Body: bytes.NewReader(large)})
	check(err)
	part, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(bucket), Key: in("large"), Range: aws.String("bytes=10-20")})
	check(err)
	b, err = io.ReadAll(part.Body)
	check(err)
	fmt.Println("range", string(b))
	w := manager.NewWriteAtBuffer(nil)
	_, err = manager.NewDownloader(c).Download(ctx, w, &s3.GetObjectInput{Bucket: aws.String(bucket), Key: in("large")})
	check(err)
	fmt.Println("multipart", slices.Equal(w.Bytes(), large))

	list, err := c.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: aws.String(bucket), Prefix: aws.String("go/")})
	check(err)
	fmt.Println("list", len(list.Contents))
	_, err = c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: aws.String(bucket), Key: in("large")})
	check(err)
	_, err = c.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: aws.String(bucket)})
	fmt.Println("bucket", err)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
