package main

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vouchd/vouchd/cmd/vouchd/daemon/daemontest"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

// A laptop is a machine with nothing but the vouch binary and the files that were
// copied to it: another root directory, no network, no environment.
type laptop struct {
	t    testing.TB
	root string
}

func newLaptop(t testing.TB) *laptop {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("another root directory needs root")
	}
	l := &laptop{t, t.TempDir()}
	vouch, err := os.ReadFile(daemontest.Program(t, "vouch"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(l.root, "vouch"), vouch, 0o755))
	return l
}

func (l *laptop) vouch(args ...string) (stdout, stderr string, code int) {
	l.t.Helper()
	cmd := exec.Command("/vouch", args...)
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: l.root, Cloneflags: syscall.CLONE_NEWNET}
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		l.t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

func (l *laptop) write(name, content string) {
	l.t.Helper()
	must(l.t, os.WriteFile(filepath.Join(l.root, name), []byte(content), 0o600))
}

// TestLogIsVerifiedWhereThereIsNothingButVouchAndTheMakersRoot is the whole way: a
// machine with a maker's TPM hands out identities; its log and evidence are copied
// to a laptop, where the TPM is traced to the maker and the log to the TPM.
func TestLogIsVerifiedWhereThereIsNothingButVouchAndTheMakersRoot(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.TPM = tpmtest.StartManufactured(t)
	h.Configure("")
	must(t, os.Mkdir(h.Path("ek-chain.d"), 0o755))
	h.Write("ek-chain.d/issuer.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.TPM.CA[1].Raw})))
	entries := "entries:\n"
	for i := range 10 {
		entries += fmt.Sprintf("  - {spiffe_id: spiffe://example.org/agent/%d, selectors: [unix:uid:%d]}\n", i, os.Getuid())
	}
	h.Write("entries.d/a.yaml", entries)
	h.Start()
	d := daemontest.NewDesk(t)
	d.Ask(h.Host.Host)
	for range 30 { // of ten identities each: more than a tile
		_, err := h.Fetch()
		must(t, err)
	}
	h.Stop()

	l := newLaptop(t)
	log := filepath.Join(l.root, "log")
	must(t, os.CopyFS(log, os.DirFS(h.Path("state/log"))))
	for _, name := range []string{"evidence.json", "kept.json", "answer.json"} {
		l.write(name, d.Read(name))
	}
	root := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.TPM.CA[0].Raw}))
	l.write("policy.yaml", "endorsement:\n  roots:\n    - |\n      "+strings.ReplaceAll(strings.TrimSpace(root), "\n", "\n      ")+"\nboot_state: any\n")
	out, stderr, code := l.vouch("node", "appraise", "/evidence.json", "--policy", "/policy.yaml", "--any-nonce", "--kept", "/kept.json", "--answer", "/answer.json", "--output", "json")
	if code != 0 {
		t.Fatalf("vouch node appraise exits %d: %s%s", code, out, stderr)
	}
	l.write("machine.json", out)
	verify := func(args ...string) (string, int) {
		out, stderr, code := l.vouch(append([]string{"log", "verify", "/log", "--node", "/machine.json"}, args...)...)
		return out + stderr, code
	}
	out, code = verify("--trace")
	if code != 0 || !strings.Contains(out, "The machine is the one in ") || strings.Count(out, "<- node key <- AK <- TPM") != 300 {
		t.Fatalf("vouch log verify exits %d: %s", code, out)
	}
	readTiles(t, log, daemontest.LogKey(h.Host.Host))
	out, stderr, code = l.vouch("log", "prove", "70", "/log")
	if code != 0 {
		t.Fatalf("vouch log prove exits %d: %s", code, stderr)
	}
	l.write("proof.txt", out)
	if out, stderr, code := l.vouch("log", "verify-proof", "--key", daemontest.LogKey(h.Host.Host), "/proof.txt"); code != 0 || !strings.Contains(out, "record 70 is in the log") || !strings.Contains(out, "x509_svid.issue") {
		t.Errorf("vouch log verify-proof exits %d: %s%s", code, out, stderr)
	}
	if out, _, code := l.vouch("log", "consistency", "20", "300", "/log"); code != 0 || !strings.HasPrefix(out, "vouchd consistency proof v1\n20\n300\n") {
		t.Errorf("vouch log consistency exits %d: %s", code, out)
	}

	// Each tampering is told by name.
	other := newHost(t)
	other.Write("entries.d/a.yaml", daemontest.EntriesFor(1))
	other.Start()
	_, err := other.Fetch()
	must(t, err)
	other.Stop()
	const wal = "wal/00000000000000000000.wal"
	for _, tt := range []struct {
		name   string
		tamper func(dir string) error
		args   []string
		want   []string // one of them
	}{
		{"a byte of a segment", flip(wal, 20_000), nil, []string{"damage"}},
		{"a byte of a tile", flip("tile/0/000", 999), nil, []string{"tile-mismatch"}},
		{"a byte of a bundle", flip("tile/entries/000", 999), nil, []string{"tile-mismatch"}},
		{"a byte of the checkpoint", flip("checkpoint", 120), nil, []string{"checkpoint-signature"}},
		{"the end cut off", shorten(wal, 5000), nil, []string{"torn-end", "rolled-back"}},
		{"the segment removed", remove(wal), nil, []string{"damage", "records-missing", "rolled-back", "end-not-anchored", "open-end"}},
		{"a tile removed", remove("tile/0/000"), nil, []string{"tile-missing"}},
		{"a file put in", put("tile/0/777"), nil, []string{"tile-beyond"}},
		{"another machine's log", replace(other.Path("state/log")), nil, []string{"statement"}},
		{"another machine's segment", copyOver(other.Path("state/log/"+wal), wal), nil, []string{"statement", "checkpoint-signature"}},
		{"an older copy, by the counter", nothing, []string{"--counter", "77"}, []string{"rolled-back"}},
		{"another log's key", nothing, []string{"--key", daemontest.LogKey(other.Host.Host)}, []string{"wrong-key"}},
	} {
		must(t, os.RemoveAll(log))
		must(t, os.CopyFS(log, os.DirFS(h.Path("state/log"))))
		must(t, tt.tamper(log))
		out, code := verify(tt.args...)
		named := false
		for _, name := range tt.want {
			named = named || strings.Contains(out, "failure: "+name)
		}
		if code == 0 || !named {
			t.Errorf("%s: exits %d without %q: %s", tt.name, code, tt.want, out)
		}
	}
}

// readTiles reads the tiles as public software does, with x/mod alone.
func readTiles(t *testing.T, dir, vkey string) {
	t.Helper()
	v, err := note.NewVerifier(vkey)
	must(t, err)
	signed, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	must(t, err)
	n, err := note.Open(signed, note.VerifierList(v))
	must(t, err)
	tree, err := tlog.ParseTree([]byte("go.sum database tree\n" + strings.TrimPrefix(n.Text, v.Name()+"\n")))
	must(t, err)
	if tree.N < 300 {
		t.Errorf("the checkpoint is of %d records", tree.N)
	}
	hashes := tlog.TileHashReader(tree, tiles(dir))
	for index := range tree.N {
		proof, err := tlog.ProveRecord(tree.N, index, hashes)
		must(t, err)
		must(t, tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(entryAt(t, dir, tree.N, index))))
	}
}

// entryAt reads a record from its bundle: two bytes of length before each.
func entryAt(t *testing.T, dir string, size, index int64) []byte {
	t.Helper()
	name := fmt.Sprintf("%s/tile/entries/%03d", dir, index/256)
	if index/256 == size/256 {
		name += fmt.Sprintf(".p/%d", size%256)
	}
	b, err := os.ReadFile(name)
	must(t, err)
	for range index % 256 {
		b = b[2+int(b[0])<<8+int(b[1]):]
	}
	return b[2 : 2+int(b[0])<<8+int(b[1])]
}

// tiles is a directory of tiles as C2SP tlog-tiles names them.
type tiles string

func (tiles) Height() int                     { return 8 }
func (tiles) SaveTiles([]tlog.Tile, [][]byte) {}
func (dir tiles) ReadTiles(list []tlog.Tile) (data [][]byte, err error) {
	for _, tile := range list {
		b, err := os.ReadFile(filepath.Join(string(dir), strings.Replace(tile.Path(), "tile/8/", "tile/", 1)))
		if err != nil {
			return nil, err
		}
		data = append(data, b)
	}
	return data, nil
}

func flip(name string, at int) func(string) error {
	return func(dir string) error {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		b[at] ^= 1
		return os.WriteFile(filepath.Join(dir, name), b, 0o600)
	}
}

func shorten(name string, by int64) func(string) error {
	return func(dir string) error {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		return os.Truncate(filepath.Join(dir, name), info.Size()-by)
	}
}

func remove(name string) func(string) error {
	return func(dir string) error { return os.Remove(filepath.Join(dir, name)) }
}

func put(name string) func(string) error {
	return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), make([]byte, 256*32), 0o600) }
}

func replace(with string) func(string) error {
	return func(dir string) error { return errors.Join(os.RemoveAll(dir), os.CopyFS(dir, os.DirFS(with))) }
}

func copyOver(from, to string) func(string) error {
	return func(dir string) error {
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, to), b, 0o600)
	}
}

func nothing(string) error { return nil }
