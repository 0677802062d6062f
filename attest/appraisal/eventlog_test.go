package appraisal

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	tcg "github.com/google/go-attestation/attest"
	"github.com/google/go-tpm/tpm2"
)

const ukiLog = "testdata/uki-secureboot/binary_bios_measurements"

// An attacker may give any log he likes; the PCRs are what they are.
func TestChangedEventLogsAreRefused(t *testing.T) {
	t.Parallel()
	good := readFile(t, ukiLog)
	pcrs := recordedPCRs(t, "uki-secureboot")
	if l, err := replayEventLog(good, crypto.SHA256, pcrs); err != nil || l.firmware() != nil {
		t.Fatalf("the log as recorded: %v, %v", err, l.firmware())
	}
	events := splitLog(t, good)
	swap := func(i, j int) []byte {
		s := append([][]byte(nil), events...)
		s[i], s[j] = s[j], s[i]
		return bytes.Join(s, nil)
	}
	first7 := eventOf(t, events, 7)
	for _, tt := range []struct {
		name string
		log  []byte
	}{
		{"nothing", nil},
		{"the first event only", events[0]},
		{"cut in the first event", good[:20]},
		{"cut in the last event", good[:len(good)-1]},
		{"cut after an event of PCR 7", bytes.Join(events[:first7+2], nil)},
		{"without its first event", bytes.Join(events[1:], nil)},
		{"without an event of PCR 7", bytes.Join(append(append([][]byte(nil), events[:first7]...), events[first7+1:]...), nil)},
		{"two events of one PCR swapped", swap(first7, first7+1)},
		{"an event twice", bytes.Join(append(append([][]byte(nil), events...), events[first7]), nil)},
		{"an event of another machine added", append(bytes.Clone(good), event(7, 0x80000001, []byte("another"))...)},
		{"a changed digest", bytes.Join(append(append([][]byte(nil), events[:first7]...), append([][]byte{flip(events[first7], 40)}, events[first7+1:]...)...), nil)},
		{"a data length beyond the end", flipLength(events, first7)},
		{"a hundred algorithms", flip(good, 32+24)},
		{"longer than allowed", make([]byte, MaxEventLogLen+1)},
		{"zeros", make([]byte, 10_000)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := replayEventLog(tt.log, crypto.SHA256, pcrs)
			if err == nil {
				err = l.firmware()
			}
			if !errors.Is(err, ErrEventLog) {
				t.Errorf("replay = %v, want %v", err, ErrEventLog)
			}
		})
	}
}

// Types are not hashed, so relabelling an event must not change what is found.
func TestRelabelledEventsDoNotTurnSecureBootOn(t *testing.T) {
	t.Parallel()
	for _, recording := range []string{"uki-secureboot", "kernel-no-secureboot"} {
		events := splitLog(t, readFile(t, filepath.Join("testdata", recording, "binary_bios_measurements")))
		pcrs := recordedPCRs(t, recording)
		want := recording == "uki-secureboot"
		for i := 1; i < len(events); i++ {
			for _, typ := range []uint32{0, 3, 4, 5, 13, 0x80000001, 0x80000002, 0x80000003, 0x80000007, 0x800000e0, 0xdeadbeef} {
				changed := bytes.Clone(events[i])
				binary.LittleEndian.PutUint32(changed[4:], typ)
				log := bytes.Join(append(append(append([][]byte(nil), events[:i]...), changed), events[i+1:]...), nil)
				l, err := replayEventLog(log, crypto.SHA256, pcrs)
				if err != nil || l.firmware() != nil {
					continue
				}
				if s, err := l.secureBoot(); err == nil && s.on && !want {
					t.Errorf("%s: event %d as type %#x says Secure Boot is on", recording, i, typ)
				}
			}
		}
	}
}

// EventLog.Verify has no complaint about PCRs without events.
func TestPCRsWithoutEventsProveNothing(t *testing.T) {
	t.Parallel()
	pcrs := recordedPCRs(t, "uki-secureboot")
	events := splitLog(t, readFile(t, ukiLog))
	var without [][]byte
	for i, e := range events {
		if i == 0 || binary.LittleEndian.Uint32(e) != 7 {
			without = append(without, e)
		}
	}
	l, err := replayEventLog(bytes.Join(without, nil), crypto.SHA256, pcrs)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.firmware(); !errors.Is(err, ErrEventLog) {
		t.Errorf("firmware = %v, want %v", err, ErrEventLog)
	}
	if _, err := l.secureBoot(); !errors.Is(err, ErrEventLog) {
		t.Errorf("secureBoot = %v, want %v", err, ErrEventLog)
	}
	// Nor where the PCR was never extended.
	pcrs[7] = make([]byte, 32)
	if l, err = replayEventLog(bytes.Join(without, nil), crypto.SHA256, pcrs); err != nil {
		t.Fatal(err)
	}
	if _, err := l.secureBoot(); !errors.Is(err, ErrEventLog) {
		t.Errorf("secureBoot of an empty PCR 7 = %v, want %v", err, ErrEventLog)
	}
}

func TestCommandLineWhereItWasMeasured(t *testing.T) {
	t.Parallel()
	const line = "BOOT_IMAGE=/boot/vmlinuz root=/dev/sda1 ro quiet"
	const path = "/boot/vmlinuz root=/dev/sda1 ro quiet"
	wide := hashOf(crypto.SHA256, utf16LE(line))
	opaque := tcg.Event{Digest: someBytes(32), Data: []byte("LOADED_IMAGE::LoadOptions\x00")}
	measured := tcg.Event{Digest: wide, Data: []byte("LOADED_IMAGE::LoadOptions\x00")}
	grub := func(kind, text string) tcg.Event {
		return tcg.Event{Digest: hashOf(crypto.SHA256, []byte(text)), Data: []byte(kind + ": " + text + "\x00")}
	}
	for _, tt := range []struct {
		name   string
		proven map[uint][]tcg.Event
		want   bool
	}{
		{"by the kernel's stub", map[uint][]tcg.Event{9: {measured, opaque}}, true},
		{"by systemd's stub", map[uint][]tcg.Event{12: {measured}}, true},
		{"by GRUB", map[uint][]tcg.Event{8: {grub("grub_cmd", "set x=y"), grub("kernel_cmdline", path)}}, true},
		{"nowhere", nil, false},
		{"another one", map[uint][]tcg.Event{9: {opaque}}, false},
		{"after another one, by software that ran later", map[uint][]tcg.Event{9: {opaque, measured}}, false},
		{"in a PCR that is not for it", map[uint][]tcg.Event{11: {measured}, 5: {measured}}, false},
		{"by GRUB, after another kernel", map[uint][]tcg.Event{8: {grub("kernel_cmdline", "/boot/evil init=/bin/sh"), grub("kernel_cmdline", path)}}, false},
		{"by GRUB, after another kernel called a command", map[uint][]tcg.Event{8: {grub("grub_cmd", "/boot/evil init=/bin/sh"), grub("kernel_cmdline", path)}}, false},
		{"by GRUB, after something unexplained", map[uint][]tcg.Event{8: {opaque, grub("kernel_cmdline", path)}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := bootLog{proven: tt.proven}.commandLine(line, crypto.SHA256)
			if (err == nil) != tt.want {
				t.Errorf("commandLine = %v", err)
			}
		})
	}
	l, err := replayEventLog(readFile(t, ukiLog), crypto.SHA256, recordedPCRs(t, "uki-secureboot"))
	if err != nil {
		t.Fatal(err)
	}
	if place, err := l.commandLine(ukiCommandLine, crypto.SHA256); err != nil || place != "PCR 9" {
		t.Errorf("the recorded one: %q, %v", place, err)
	}
}

// The logs that go-attestation tests with are from other firmwares, clouds and
// boot loaders. Played into PCRs, each is what its PCRs are explained by.
func TestOtherFirmwaresLogs(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"coreos_36_shielded_vm_no_secure_boot_eventlog", "crypto_agile_eventlog",
		"sb_cert_eventlog", "ubuntu_2104_shielded_vm_no_secure_boot_eventlog",
	} {
		t.Run(name, func(t *testing.T) {
			log := readFile(t, filepath.Join(moduleDir(t, "github.com/google/go-attestation"), "attest", "testdata", name))
			pcrs := played(t, log)
			l, err := replayEventLog(log, crypto.SHA256, pcrs)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.firmware(); err != nil {
				t.Error(err)
			}
			if s, err := l.secureBoot(); err == nil && s.on && strings.Contains(name, "no_secure_boot") {
				t.Error("Secure Boot is on, the log's name says off")
			}
			for pcr := range uint(8) {
				if len(l.proven[pcr]) == 0 {
					continue
				}
				pcrs[pcr] = flip(pcrs[pcr], 0)
				if l, err := replayEventLog(log, crypto.SHA256, pcrs); err != nil || !errors.Is(l.firmware(), ErrEventLog) {
					t.Errorf("with another value of PCR %d: %v, %v", pcr, err, l.firmware())
				}
				pcrs[pcr] = flip(pcrs[pcr], 0)
			}
		})
	}
}

func moduleDir(t *testing.T, module string) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := strings.TrimSpace(string(out))
	if _, err := os.Stat(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// played computes what a log's events make of the PCRs (SHA-256 bank).
func played(t testing.TB, log []byte) map[uint]Hex {
	t.Helper()
	l, err := tcg.ParseEventLog(log)
	if err != nil {
		t.Fatal(err)
	}
	pcrs := make(map[uint]Hex)
	for _, pcr := range AllPCRs {
		pcrs[pcr] = make([]byte, 32)
	}
	for _, e := range l.Events(tcg.HashSHA256) {
		if e.Type == 3 && e.Index == 0 && bytes.HasPrefix(e.Data, []byte("StartupLocality")) {
			pcrs[0][31] = e.Data[len(e.Data)-1]
		}
		if e.Type != 3 {
			h := sha256.Sum256(append(bytes.Clone(pcrs[uint(e.Index)]), e.Digest...))
			pcrs[uint(e.Index)] = h[:]
		}
	}
	return pcrs
}

// splitLog cuts a crypto-agile log with SHA-1 and SHA-256 digests into events.
func splitLog(t *testing.T, log []byte) [][]byte {
	t.Helper()
	n := 32 + int(binary.LittleEndian.Uint32(log[28:]))
	events := [][]byte{log[:n]}
	for log = log[n:]; len(log) > 0; log = log[n:] {
		const digests = 12 + 2 + 20 + 2 + 32
		n = digests + 4 + int(binary.LittleEndian.Uint32(log[digests:]))
		events = append(events, log[:n])
	}
	return events
}

func eventOf(t *testing.T, events [][]byte, pcr uint32) int {
	t.Helper()
	for i := 1; i < len(events); i++ {
		if binary.LittleEndian.Uint32(events[i]) == pcr {
			return i
		}
	}
	t.Fatalf("no event of PCR %d", pcr)
	return 0
}

// event makes an event with the digests of its data.
func event(pcr, typ uint32, data []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, pcr)
	b = binary.LittleEndian.AppendUint32(b, typ)
	b = binary.LittleEndian.AppendUint32(b, 2)
	d := sha256.Sum256(data)
	b = append(binary.LittleEndian.AppendUint16(b, 4), d[:20]...)
	b = append(binary.LittleEndian.AppendUint16(b, 11), d[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func flipLength(events [][]byte, i int) []byte {
	changed := bytes.Clone(events[i])
	binary.LittleEndian.PutUint32(changed[12+2+20+2+32:], 0xffffffff)
	return bytes.Join(append(append(append([][]byte(nil), events[:i]...), changed), events[i+1:]...), nil)
}

func TestIMALists(t *testing.T) {
	t.Parallel()
	list := readFile(t, "testdata/uki-secureboot/ima_binary_runtime_measurements")
	pcr := recordedPCRs(t, "uki-secureboot")[imaPCR]
	replay := func(list []byte) ([]imaEntry, error) {
		entries, err := parseIMA(list)
		if err != nil {
			return nil, err
		}
		return replayIMA(entries, pcr)
	}
	all, err := parseIMA(list)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := replay(list)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != len(all)-1 {
		t.Errorf("%d of %d entries are proven, want all but the last", len(entries), len(all))
	}
	if e := entries[0]; e.path != "boot_aggregate" || !strings.HasPrefix(e.digest, "sha256:") {
		t.Errorf("first entry is %s %s", e.path, e.digest)
	}
	cut := make([]int, 0, 64) // every cut in the first two entries
	for i := 1; i < 64; i++ {
		cut = append(cut, i)
	}
	for _, i := range append(cut, len(list)/2, len(list)-1) {
		if _, err := replay(list[:i]); err == nil {
			t.Errorf("cut at %d: accepted", i)
		}
	}
	for i := range 300 {
		if _, err := replay(flip(list, i)); err == nil {
			t.Errorf("byte %d changed: accepted", i)
		}
	}
	swapped := bytes.Clone(list)
	if _, err := replay(swapped[entryLen(t, swapped):]); !errors.Is(err, ErrIMA) {
		t.Errorf("without its first entry: %v, want %v", err, ErrIMA)
	}
	if _, err := replay(nil); !errors.Is(err, ErrIMA) {
		t.Errorf("no list: %v, want %v", err, ErrIMA)
	}
}

func entryLen(t *testing.T, list []byte) int {
	t.Helper()
	r := imaReader(list)
	if _, err := r.entry(); err != nil {
		t.Fatal(err)
	}
	return len(list) - len(r)
}

// A file that was open for writing while it ran was not measured for certain.
func TestUnknownDigestIsNotAllowedAndMayBeForbidden(t *testing.T) {
	t.Parallel()
	entries, err := parseIMA(readFile(t, "testdata/uki-secureboot/ima_binary_runtime_measurements"))
	if err != nil {
		t.Fatal(err)
	}
	e := entries[2]
	p := imaPattern{Path: e.path, SHA256: []digest{digest(strings.TrimPrefix(e.digest, "sha256:"))}}
	other := imaPattern{Path: e.path, SHA256: []digest{other}}
	allow, forbid := IMARule{Allow: []imaPattern{p}}, IMARule{Forbid: []imaPattern{other}}
	if err := errors.Join(allow.judge([]imaEntry{e}), forbid.judge([]imaEntry{e})); err != nil {
		t.Fatalf("as it is: %v", err)
	}
	for name, change := range map[string]func(*imaEntry){
		"open for writing":         func(e *imaEntry) { e.violation = true },
		"hashed in another manner": func(e *imaEntry) { e.digest = "sha1:" + e.digest },
	} {
		changed := e
		change(&changed)
		if err := allow.judge([]imaEntry{changed}); err == nil {
			t.Errorf("%s: allowed", name)
		}
		if err := forbid.judge([]imaEntry{changed}); err == nil {
			t.Errorf("%s: not forbidden, though it may be the forbidden one", name)
		}
	}
}

func TestPolicyErrors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ text, says string }{
		{"pcrs: ['24:" + other + "']", "PCR"},
		{"pcrs: ['07:" + other + "']", "PCR"},
		{"pcrs: ['7:abc']", "digest"},
		{"pcrs: ['7']", "colon"},
		{"pcr: []", "unknown key"},
		{"endorsement: {keys: [abc]}", "64"},
		{"endorsement: {roots: ['not a certificate']}", "PEM"},
		{"endorsement: {activation: never}", "activation"},
		{"kernel_command_line: {allow: ['(']}", "regular expression"},
		{"ima: {allow: [{sha256: []}]}", "path"},
		{"boot_state: none", "boot_state"},
		{"secure_boot: {required: 1}", "true or false"},
		{"allow_sha1: yes please", "true or false"},
	} {
		_, err := ParsePolicy("policy.yaml", []byte(tt.text))
		if err == nil || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), "policy.yaml:1") {
			t.Errorf("%s: error %v does not name the line and %q", tt.text, err, tt.says)
		}
	}
}

func TestLearnedPolicyQuotesWhatTheHostSays(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"plain", `a "quoted" \ one`, "two\nlines: x", "ümläut\x00\x7f", "- {x: y}"} {
		p, err := ParsePolicy("p", []byte(fmt.Sprintf("ima: {allow: [{path: %s}]}", quoted(s))))
		if err != nil || len(p.IMA.Allow) != 1 || p.IMA.Allow[0].Path != s {
			t.Errorf("%q came back as %+v, %v", s, p.IMA.Allow, err)
		}
	}
}

func TestSecureBootKeysAreJudged(t *testing.T) {
	t.Parallel()
	named := SecureBootRule{Keys: []digest{other}}
	for _, tt := range []struct {
		name string
		rule SecureBootRule
		is   secureBoot
		want bool
	}{
		{"the key that is named", named, secureBoot{on: true, authorities: []string{other}}, true},
		{"another key besides", named, secureBoot{on: true, authorities: []string{other, "cd"}}, false},
		{"no key", named, secureBoot{on: true}, false},
		{"digests that may boot without a key", named, secureBoot{on: true, authorities: []string{other}, hashes: true}, false},
		{"any key where none is named", SecureBootRule{Required: true}, secureBoot{on: true, authorities: []string{"cd"}, hashes: true}, true},
		{"off", SecureBootRule{Required: true}, secureBoot{}, false},
	} {
		if err := tt.rule.judge(tt.is); (err == nil) != tt.want {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// other is a digest of nothing that is around.
const other = "abababababababababababababababababababababababababababababababab"

// The command line that testdata/uki-secureboot was booted with.
const ukiCommandLine = "root=LABEL=vmroot rw console=ttyS0 ima_policy=tcb ima_hash=sha256 systemd.show_status=no quiet"

// recordedPCRs reads the values that the kernel showed at the time.
func recordedPCRs(t testing.TB, recording string) map[uint]Hex {
	t.Helper()
	pcrs := make(map[uint]Hex)
	for line := range strings.Lines(string(readFile(t, filepath.Join("testdata", recording, "pcrs-sysfs.txt")))) {
		var bank, value string
		var pcr uint
		if _, err := fmt.Sscan(line, &bank, &pcr, &value); err != nil {
			t.Fatal(err)
		}
		if bank == BankSHA256 {
			b, err := hex.DecodeString(value)
			if err != nil {
				t.Fatal(err)
			}
			pcrs[pcr] = b
		}
	}
	return pcrs
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func signedBy(t *testing.T, key *ecdsa.PrivateKey, text []byte) Signed {
	t.Helper()
	digest := sha256.Sum256(text)
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return Signed{Attested: text, Signature: tpm2.Marshal(tpm2.TPMTSignature{
		SigAlg: tpm2.TPMAlgECDSA,
		Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash:       tpm2.TPMAlgSHA256,
			SignatureR: tpm2.TPM2BECCParameter{Buffer: r.FillBytes(make([]byte, 32))},
			SignatureS: tpm2.TPM2BECCParameter{Buffer: s.FillBytes(make([]byte, 32))},
		}),
	})}
}

func flip(b []byte, i int) []byte {
	b = bytes.Clone(b)
	b[i] ^= 1
	return b
}

// someBytes are for tests that need any bytes but always others.
func someBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}
