//go:build clients

package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"
	"github.com/vouchd/vouchd/cmd/vouchd/daemon/proxytest"
)

// Programs of the Go module proxy.
const (
	versitygw = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
	grpcurl   = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4"
	h2spec    = "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible"
)

// installed returns the path of a Go program.
func (h *caller) installed(module string) string {
	h.T.Helper()
	cmd := exec.Command("go", "install", module)
	cmd.Env = append(os.Environ(), "GOBIN="+h.Path("bin"), "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		h.T.Fatalf("%s: %v\n%s", module, err, out)
	}
	path, _, _ := strings.Cut(module, "@")
	return h.Path("bin") + path[strings.LastIndexByte(path, '/'):]
}

// built returns the path of one of testdata/clients.
func (h *caller) built(name string) string {
	h.T.Helper()
	cmd := exec.Command("go", "build", "-o", h.Path("bin")+"/", "./"+name)
	cmd.Dir = "testdata/clients"
	if out, err := cmd.CombinedOutput(); err != nil {
		h.T.Fatalf("%s: %v\n%s", name, err, out)
	}
	return h.Path("bin/" + name)
}

// starts starts a server, and returns once it accepts connections.
func (h *caller) starts(address string, env []string, args ...string) {
	h.T.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = h.T.Output()
	must(h.T, cmd.Start())
	h.T.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	daemontest.Eventually(h.T, args[0]+" serves", func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

const s3Boto = `import boto3, io, os
from botocore.exceptions import ClientError
c = boto3.client("s3", region_name="us-east-1", endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"])
key = "python/a b+c=d&e/ü~"
c.put_object(Bucket="tides", Key=key, Body=b"tides")
got = c.get_object(Bucket="tides", Key=key)
print("get", got["Body"].read().decode(), got["ContentLength"])
large = b"0123456789abcdef" * (20 << 16)
c.upload_fileobj(io.BytesIO(large), "tides", "python/large")
print("range", c.get_object(Bucket="tides", Key="python/large", Range="bytes=10-20")["Body"].read().decode())
b = io.BytesIO()
c.download_fileobj("tides", "python/large", b)
print("multipart", b.getvalue() == large)
print("list", len(c.list_objects_v2(Bucket="tides", Prefix="python/")["Contents"]))
c.delete_object(Bucket="tides", Key="python/large")
try: c.delete_bucket(Bucket="tides")
except ClientError as e: print("bucket", e)
`

const s3Reader = `import boto3, os
from botocore.exceptions import ClientError
c = boto3.client("s3", region_name="us-east-1", endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"])
print("list", len(c.list_objects_v2(Bucket="tides")["Contents"]) > 0)
def refused(what, **kwargs):
    try:
        getattr(c, what)(Bucket="tides", **kwargs)
        print(what, "was done")
    except ClientError as e: print(what, e.response["ResponseMetadata"]["HTTPStatusCode"])
refused("put_object", Key="x", Body=b"x")
refused("delete_object", Key="x")
refused("delete_objects", Delete={"Objects": [{"Key": "x"}]})
refused("create_multipart_upload", Key="x")
refused("get_object_acl", Key="x")
`

const s3Node = `import { S3Client, PutObjectCommand, GetObjectCommand, ListObjectsV2Command, DeleteObjectCommand, DeleteBucketCommand } from '@aws-sdk/client-s3';
import { Upload } from '@aws-sdk/lib-storage';
import { Readable } from 'node:stream';
const c = new S3Client({region: 'us-east-1'});
const Bucket = 'tides', Key = 'node/a b+c=d&e/ü~';
await c.send(new PutObjectCommand({Bucket, Key, Body: 'tides'}));
const got = await c.send(new GetObjectCommand({Bucket, Key}));
console.log('get', await got.Body.transformToString(), got.ContentLength);
const large = Buffer.alloc(20 << 20, '0123456789abcdef');
await c.send(new PutObjectCommand({Bucket, Key: 'node/stream', Body: Readable.from([large.subarray(0, 1 << 20)]), ContentLength: 1 << 20}));
console.log('stream', (await (await c.send(new GetObjectCommand({Bucket, Key: 'node/stream'}))).Body.transformToByteArray()).length);
await new Upload({client: c, params: {Bucket, Key: 'node/large', Body: Readable.from([large])}}).done();
console.log('range', await (await c.send(new GetObjectCommand({Bucket, Key: 'node/large', Range: 'bytes=10-20'}))).Body.transformToString());
console.log('multipart', large.equals(await (await c.send(new GetObjectCommand({Bucket, Key: 'node/large'}))).Body.transformToByteArray()));
console.log('list', (await c.send(new ListObjectsV2Command({Bucket, Prefix: 'node/'}))).Contents.length);
await c.send(new DeleteObjectCommand({Bucket, Key: 'node/large'}));
try { await c.send(new DeleteBucketCommand({Bucket})); } catch (e) { console.log('bucket', e.$metadata.httpStatusCode, e.message); }
`

// TestProxyClientsS3: SDKs, against a server of S3.
func TestProxyClientsS3(t *testing.T) {
	h := newCaller(t)
	must(t, os.MkdirAll(h.Path("s3/tides"), 0o755))
	h.Write("s3.pem", upstreamKey(t, h))
	address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	h.starts(address, []string{"ROOT_ACCESS_KEY=AKIATIDES", "ROOT_SECRET_KEY=" + proxytest.Secret},
		h.installed(versitygw), "--quiet", "--port", address, "--cert", h.Path("ca.pem"), "--key", h.Path("s3.pem"), "posix", h.Path("s3"))
	of := []string{"preset: s3-2026-11", "slot: {sigv4: {region: us-east-1, service: s3, access_key_id: AKIATIDES}}", "upstream: https://" + address}
	h.start(map[string][]string{"objects": append(of, "variant: objects"), "reader": append(of, "variant: read-only")})
	t.Setenv("AWS_REGION", "us-east-1")

	common := []string{"get tides 5\n", "range abcdef01234\n", "list 2\n"}
	t.Run("boto3 puts, gets, lists and deletes, in parts too", func(t *testing.T) {
		h.Write("home/s3.py", s3Boto)
		h.says(t, h.run(t, h.by("objects", "/usr/bin/python3", "s3.py")...), append(common, "multipart True\n", "bucket An error occurred (403)")...)
	})
	t.Run("the SDK for Go does", func(t *testing.T) {
		h.says(t, h.run(t, h.by("objects", h.built("s3"))...), append(common, "multipart true\n", "StatusCode: 403")...)
	})
	t.Run("MinIO's, which signs chunk by chunk", func(t *testing.T) {
		h.says(t, h.run(t, h.by("objects", h.built("minio"))...), "signed true\n", "trailer true\n")
	})
	t.Run("the SDK for Node, with checksums that follow the content", func(t *testing.T) {
		h.Write("home/package.json", `{"type":"module","dependencies":{"@aws-sdk/client-s3":"3.1175.0","@aws-sdk/lib-storage":"3.1175.0"}}`)
		h.run(t, "npm", "install", "--no-fund", "--no-audit", "--silent")
		h.Write("home/s3.mjs", s3Node)
		h.says(t, h.run(t, h.by("objects", "node", "s3.mjs")...), "get tides 5\n", "stream 1048576\n", "range abcdef01234\n", "multipart true\n", "list 3\n", "bucket 403")
	})
	t.Run("who may read changes nothing", func(t *testing.T) {
		h.Write("home/reader.py", s3Reader)
		h.says(t, h.run(t, h.by("reader", "/usr/bin/python3", "reader.py")...),
			"list True\n", "put_object 403\n", "delete_object 403\n", "delete_objects 403\n", "create_multipart_upload 403\n", "get_object_acl 403\n")
	})
}

// says wants all of these in what a program prints.
func (h *caller) says(t *testing.T, out string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(out, want) {
			t.Errorf("it prints\n%s\nwant %q", out, want)
		}
	}
}
