//go:build clients

package main

import (
	"context"
	"crypto/tls"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/proxytest"
)

// serveGRPC serves health and reflection to who has the secret, over TLS.
func serveGRPC(t *testing.T, h *caller) (url string) {
	t.Helper()
	known := func(ctx context.Context) error {
		md, _ := metadata.FromIncomingContext(ctx)
		if got := md.Get("authorization"); len(got) != 1 || got[0] != "Bearer "+proxytest.Secret {
			return status.Errorf(codes.Unauthenticated, "no key")
		}
		return nil
	}
	s := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: h.Upstream.TLS.Certificates})),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := known(ctx); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := known(ss.Context()); err != nil {
				return err
			}
			return next(srv, ss)
		}),
	)
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	reflection.Register(s)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return "https://" + l.Addr().String()
}

const grpcNode = `import grpc from '@grpc/grpc-js';
const raw = {requestSerialize: b => b, requestDeserialize: b => b, responseSerialize: b => b, responseDeserialize: b => b};
const Service = grpc.makeGenericClientConstructor({
  check: {path: '/grpc.health.v1.Health/Check', requestStream: false, responseStream: false, ...raw},
  watch: {path: '/grpc.health.v1.Health/Watch', requestStream: false, responseStream: true, ...raw},
  list: {path: '/grpc.health.v1.Health/List', requestStream: false, responseStream: false, ...raw},
  reflect: {path: '/grpc.reflection.v1.ServerReflection/ServerReflectionInfo', requestStream: true, responseStream: true, ...raw},
});
const c = new Service('unix:' + process.argv[2], grpc.credentials.createInsecure(), {'grpc.default_authority': 'grpc.example.com'});
const none = Buffer.alloc(0);
console.log('check', (await new Promise((ok, no) => c.check(none, (e, m) => e ? no(e) : ok(m)))).toString('hex'));
const watch = c.watch(none);
console.log('watch', (await new Promise((ok, no) => watch.on('data', ok).on('error', no))).toString('hex'));
watch.on('error', () => {});
watch.cancel();
const both = c.reflect();
for (const n of [1, 2]) {
  both.write(Buffer.from([0x3a, 1, 0x2a]));
  console.log('reflect', n, (await new Promise((ok, no) => both.once('data', ok).once('error', no))).includes('grpc.health.v1.Health'));
}
both.end();
console.log('status', await new Promise(ok => both.on('status', s => ok(s.code)).resume()));
console.log('refused', await new Promise(ok => c.list(none, e => ok(e.code + ' ' + e.details))));
c.close();
`

// TestProxyClientsGRPC: what speaks HTTP/2 to the socket, to a server over TLS.
func TestProxyClientsGRPC(t *testing.T) {
	h := newCaller(t)
	h.start(map[string][]string{"grpc": {
		"upstream: " + serveGRPC(t, h), "hosts: [grpc.example.com]",
		`rules: [{name: health, effect: allow, methods: [POST], paths: [/grpc.health.v1.Health/Check, /grpc.health.v1.Health/Watch, "/grpc.reflection.v1.ServerReflection/*", "/grpc.reflection.v1alpha.ServerReflection/*"]}]`,
	}})
	const refused = "no rule of grpc allows POST /grpc.health.v1.Health/List"
	t.Run("grpcurl calls, has a stream and reflects", func(t *testing.T) {
		call := func(more ...string) []string {
			return append(append([]string{h.installed(grpcurl), "-plaintext", "-unix", "-max-time", "20", "-authority", "grpc.example.com"}, more...), h.Path("proxy.sock"))
		}
		h.says(t, h.run(t, append(call(), "list")...), "grpc.health.v1.Health\n")
		h.says(t, h.run(t, append(call(), "grpc.health.v1.Health/Check")...), `"status": "SERVING"`)
		out, _ := h.try(append(call("-max-time", "3"), "grpc.health.v1.Health/Watch")...) // which does not end by itself
		h.says(t, out, `"status": "SERVING"`, "Code: DeadlineExceeded")
		out, _ = h.try(append(call(), "grpc.health.v1.Health/List")...)
		h.says(t, out, "Code: PermissionDenied", refused)
	})
	t.Run("grpc-js does, in both directions at once", func(t *testing.T) {
		h.Write("home/package.json", `{"type":"module","dependencies":{"@grpc/grpc-js":"1.14.7"}}`)
		h.Write("home/grpc.mjs", grpcNode)
		h.run(t, "npm", "install", "--no-fund", "--no-audit", "--silent")
		h.says(t, h.run(t, "node", "grpc.mjs", h.Path("proxy.sock")), "check 0801\n", "watch 0801\n", "reflect 1 true\n", "reflect 2 true\n", "status 0\n", "refused 7 ", refused)
	})
}
