// Package tpmtest runs a real TPM 2.0 for tests: an swtpm process of the
// test's own, manufactured with endorsement key certificates from a CA of the
// test binary's own.
//
// Manufacturing takes about a second, so [Start] copies one manufactured TPM
// for each test: copies share their seeds and endorsement keys and nothing
// after that. A test about two machines takes the second from
// [StartManufactured]. Debian's swtpm and swtpm-tools are needed; a test
// without them fails, it is not skipped.
package tpmtest

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// A TPM is a running swtpm. Its methods are for one goroutine; the TPM itself
// serves one connection at a time and lets the next one wait.
type TPM struct {
	// Address is what node.Open takes: "unix:PATH".
	Address string
	// TCTI is what the programs of tpm2-tools take as --tcti.
	TCTI string
	// CA holds the root and the issuing certificate behind the TPM's
	// endorsement key certificates, in this order.
	CA []*x509.Certificate

	t    testing.TB
	dir  string
	path string
	args []string
	cmd  *exec.Cmd
}

// Start starts a TPM that was just switched on, and stops it when the test
// ends. Any number may run at once.
func Start(t testing.TB) *TPM {
	t.Helper()
	m, err := manufactured()
	if err != nil {
		t.Fatalf("manufacturing a TPM: %v", err)
	}
	return start(t, m)
}

// StartManufactured starts a TPM like no other: with seeds, endorsement keys
// and a CA of its own.
func StartManufactured(t testing.TB) *TPM {
	t.Helper()
	m, err := manufacture()
	if err != nil {
		t.Fatalf("manufacturing a TPM: %v", err)
	}
	return start(t, m)
}

func start(t testing.TB, m model) *TPM {
	t.Helper()
	tpm := place(t)
	tpm.CA = m.ca
	tpm.args = []string{"--tpm2", "--flags", "not-need-init,startup-clear"}
	if err := os.WriteFile(filepath.Join(tpm.dir, stateFile), m.state, 0o600); err != nil {
		t.Fatal(err)
	}
	tpm.Restart()
	return tpm
}

// Start12 starts a TPM 1.2, the kind that vouchd refuses. It has no
// certificates.
func Start12(t testing.TB) *TPM {
	t.Helper()
	tpm := place(t)
	tpm.args = []string{"--flags", "not-need-init"}
	tpm.Restart()
	return tpm
}

// place makes the directory. A Unix socket's path has at most 107 bytes, so
// the directory is not the test's own, whose path carries the test's name.
func place(t testing.TB) *TPM {
	t.Helper()
	dir, err := os.MkdirTemp(shortTempDir(), "tpm")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "tpm.sock")
	tpm := &TPM{Address: "unix:" + path, TCTI: "swtpm:path=" + path, t: t, dir: dir, path: path}
	t.Cleanup(func() {
		tpm.Kill()
		os.RemoveAll(dir)
	})
	return tpm
}

func shortTempDir() string {
	if dir := os.TempDir(); len(dir) < 60 {
		return dir
	}
	return "/tmp"
}

// Kill ends the TPM as a power cut would. Nothing listens until Restart.
func (tpm *TPM) Kill() {
	if tpm.cmd == nil {
		return
	}
	tpm.cmd.Process.Kill()
	tpm.cmd.Wait()
	tpm.cmd = nil
}

// Restart cuts the power, if it is on, and switches the TPM on again: PCRs
// start over, the reset count rises, transient objects and sessions are gone.
func (tpm *TPM) Restart() {
	tpm.t.Helper()
	tpm.Kill()
	os.Remove(tpm.path)
	os.Remove(tpm.path + ".ctrl")
	args := append([]string{"socket",
		"--tpmstate", "dir=" + tpm.dir,
		"--server", "type=unixio,path=" + tpm.path,
		"--ctrl", "type=unixio,path=" + tpm.path + ".ctrl",
	}, tpm.args...)
	var said bytes.Buffer
	cmd := exec.Command("swtpm", args...)
	cmd.Stderr = &said
	// The TPM must not outlive a test binary that is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		tpm.t.Fatalf("starting swtpm (Debian packages swtpm and swtpm-tools): %v", err)
	}
	tpm.cmd = cmd
	conn := tpm.dial(&said)
	conn.Close()
}

// Snapshot keeps what the TPM keeps over a power cut, as a virtual machine's is kept.
// The function it returns sets the TPM back to that, and switches it on.
func (tpm *TPM) Snapshot() (restore func()) {
	tpm.t.Helper()
	files, err := filepath.Glob(filepath.Join(tpm.dir, "*.permall"))
	if err != nil || len(files) != 1 {
		tpm.t.Fatalf("the TPM's state is in %q, %v", files, err)
	}
	kept, err := os.ReadFile(files[0])
	if err != nil {
		tpm.t.Fatal(err)
	}
	return func() {
		tpm.t.Helper()
		tpm.Kill()
		if err := os.WriteFile(files[0], kept, 0o600); err != nil {
			tpm.t.Fatal(err)
		}
		tpm.Restart()
	}
}

// Pause stops the TPM in whatever it does, so that it hangs until Resume.
func (tpm *TPM) Pause() { tpm.signal(syscall.SIGSTOP) }

// Resume lets a paused TPM go on.
func (tpm *TPM) Resume() { tpm.signal(syscall.SIGCONT) }

func (tpm *TPM) signal(s syscall.Signal) {
	tpm.t.Helper()
	if err := tpm.cmd.Process.Signal(s); err != nil {
		tpm.t.Fatalf("signalling swtpm: %v", err)
	}
}

// Clear restarts the TPM and clears it, as a firmware menu does: the owner's
// keys and counters are gone for good, the endorsement keys stay.
func (tpm *TPM) Clear() {
	tpm.t.Helper()
	tpm.Restart()
	tpm.Do(func(tr transport.TPM) error {
		_, err := tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}}.Execute(tr)
		return err
	})
}

// Extend extends a PCR in the SHA-256 and SHA-1 banks, as a changed boot would.
func (tpm *TPM) Extend(pcr int, event string) {
	tpm.t.Helper()
	d := sha256.Sum256([]byte(event))
	tpm.Do(func(tr transport.TPM) error {
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
			Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{
				{HashAlg: tpm2.TPMAlgSHA256, Digest: d[:]},
				{HashAlg: tpm2.TPMAlgSHA1, Digest: d[:20]},
			}},
		}.Execute(tr)
		return err
	})
}

// Handles returns the transient objects and the sessions that the TPM holds:
// none, unless somebody forgot to flush.
func (tpm *TPM) Handles() []tpm2.TPMHandle {
	tpm.t.Helper()
	var all []tpm2.TPMHandle
	tpm.Do(func(tr transport.TPM) error {
		for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} {
			r, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(tr)
			if err != nil {
				return err
			}
			l, err := r.CapabilityData.Data.Handles()
			if err != nil {
				return err
			}
			all = append(all, l.Handle...)
		}
		return nil
	})
	return all
}

// Do gives f a connection of its own, waiting for whoever is connected.
func (tpm *TPM) Do(f func(transport.TPM) error) {
	tpm.t.Helper()
	conn := tpm.dial(nil)
	defer conn.Close()
	if err := f(transport.FromReadWriter(conn)); err != nil {
		tpm.t.Fatalf("talking to swtpm: %v", err)
	}
}

func (tpm *TPM) dial(said fmt.Stringer) net.Conn {
	tpm.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		conn, err := net.Dial("unix", tpm.path)
		if err == nil {
			return conn
		}
		if time.Now().After(deadline) {
			tpm.t.Fatalf("swtpm does not listen on %s: %v\n%v", tpm.path, err, said)
		}
		time.Sleep(time.Millisecond) // swtpm has no other way to say that it listens
	}
}

// A model is a manufactured TPM, switched off.
type model struct {
	state []byte
	ca    []*x509.Certificate
}

var manufactured = sync.OnceValues(manufacture)

const stateFile = "tpm2-00.permall"

// manufacture makes a TPM with an RSA-2048 and a P-384 endorsement key and
// their certificates in NV. It leaves no files.
func manufacture() (model, error) {
	dir, err := os.MkdirTemp(shortTempDir(), "tpm")
	if err != nil {
		return model{}, err
	}
	defer os.RemoveAll(dir)
	for name, text := range map[string]string{
		"options": "--platform-manufacturer Example\n--platform-version 1.0\n--platform-model VM\n",
		"ca.conf": fmt.Sprintf("statedir = %[1]s\nsigningkey = %[1]s/key.pem\nissuercert = %[1]s/issuer.pem\ncertserial = %[1]s/serial\n", dir),
		"setup.conf": fmt.Sprintf("create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = %[1]s/ca.conf\n"+
			"create_certs_tool_options = %[1]s/options\n", dir),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return model{}, err
		}
	}
	out, err := exec.Command("swtpm_setup", "--tpm2", "--tpmstate", "dir://"+dir,
		"--config", filepath.Join(dir, "setup.conf"), "--create-ek-cert",
		"--pcr-banks", "sha1,sha256", "--overwrite").CombinedOutput()
	if err != nil {
		return model{}, fmt.Errorf("swtpm_setup (Debian packages swtpm and swtpm-tools): %w\n%s", err, out)
	}
	var m model
	if m.state, err = os.ReadFile(filepath.Join(dir, stateFile)); err != nil {
		return model{}, err
	}
	for _, name := range []string{"swtpm-localca-rootca-cert.pem", "issuer.pem"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return model{}, err
		}
		block, _ := pem.Decode(b)
		if block == nil {
			return model{}, fmt.Errorf("%s holds no PEM block", name)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return model{}, err
		}
		m.ca = append(m.ca, c)
	}
	return m, nil
}
