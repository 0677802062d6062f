package agent

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vouchd/vouchd/cmd/vouch/loopback"
)

// The files that tell the command's clients whom to trust.
const (
	bundleFile = "ca.pem"
	storeFile  = "ca.p12" // for Java
)

// proxyVariables make clients send requests for any host to a proxy. Those that are called
// by name are on this machine.
func proxyVariables(proxy net.Addr) (env []string) {
	for _, name := range []string{"HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"} {
		env = append(env, name+"=http://"+proxy.String(), strings.ToLower(name)+"=http://"+proxy.String())
	}
	const local = "localhost,127.0.0.1,::1"
	return append(env, "NO_PROXY="+local, "no_proxy="+local, "NODE_USE_ENV_PROXY=1")
}

// trustVariables have clients trust the certificates in a bundle, in place of their own.
var trustVariables = []string{
	"SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO", "DENO_CERT",
	"CARGO_HTTP_CAINFO", "PIP_CERT", "AWS_CA_BUNDLE", "npm_config_cafile", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "CODEX_CA_CERTIFICATE",
}

// javaOptions are for Java, which reads no other variable.
func javaOptions(proxy net.Addr, store string) string {
	host, port, _ := net.SplitHostPort(proxy.String()) // an address has both
	var b strings.Builder
	if had := os.Getenv("JAVA_TOOL_OPTIONS"); had != "" {
		b.WriteString(had + " ")
	}
	for _, scheme := range []string{"http", "https"} {
		fmt.Fprintf(&b, "-D%[1]s.proxyHost=%[2]s -D%[1]s.proxyPort=%[3]s ", scheme, host, port)
	}
	fmt.Fprintf(&b, "-Dhttp.nonProxyHosts=localhost|127.*|[::1] -Djavax.net.ssl.trustStore=%s -Djavax.net.ssl.trustStorePassword=%s", store, loopback.StorePassword)
	return b.String()
}

// trustIn returns the variables for files that are in a directory, as the command sees it.
func trustIn(dir string, proxy net.Addr) (env []string) {
	for _, name := range trustVariables {
		env = append(env, name+"="+filepath.Join(dir, bundleFile))
	}
	return append(env, "JAVA_TOOL_OPTIONS="+javaOptions(proxy, filepath.Join(dir, storeFile)))
}

// files are the ones that trustIn names, by their names.
func (c *caller) files() (map[string][]byte, error) {
	bundle, err := c.authority.Bundle()
	if err != nil {
		return nil, err
	}
	store, err := loopback.Store(bundle)
	return map[string][]byte{bundleFile: bundle, storeFile: store}, err
}

// trust writes the files to a directory that forget removes, and returns the variables
// that have the command's clients use the proxy and trust its certificates.
func (c *caller) trust(proxy net.Addr) (env []string, forget func(), err error) {
	env = proxyVariables(proxy)
	if c.authority == nil {
		return env, func() {}, nil
	}
	files, err := c.files()
	if err != nil {
		return nil, nil, err
	}
	forgetOthers()
	dir, err := os.MkdirTemp("", trustDir)
	if err != nil {
		return nil, nil, err
	}
	lock, err := os.Open(dir)
	if err != nil {
		os.RemoveAll(dir)
		return nil, nil, err
	}
	forget = func() { os.RemoveAll(dir); lock.Close() }
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_SH); err != nil {
		forget()
		return nil, nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o444); err != nil {
			forget()
			return nil, nil, err
		}
	}
	return append(env, trustIn(dir, proxy)...), forget, nil
}

// trustDir begins the name of the directory. While vouch lives it has a lock on it: a PID
// would say nothing to one in another container that has the same /tmp.
const trustDir = "vouch-exec-"

// lockedBy is how long a directory may be there without its lock.
const lockedBy = time.Minute

// forgetOthers removes what vouch has left that was killed.
func forgetOthers() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), trustDir+"*")) // the pattern is well-formed
	for _, dir := range dirs {
		f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue // another user's
		}
		info, err := f.Stat()
		if err == nil && time.Since(info.ModTime()) > lockedBy && unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.RemoveAll(dir)
		}
		f.Close()
	}
}
