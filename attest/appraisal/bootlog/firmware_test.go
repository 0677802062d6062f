package bootlog

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	tcg "github.com/google/go-attestation/attest"
)

// recordings is where the boots are that appraisal is tested with.
const recordings = "../testdata"

const ukiLog = "../testdata/uki-secureboot/binary_bios_measurements"

// An attacker may give any log he likes; the PCRs are what they are.
func TestChangedEventLogsAreRefused(t *testing.T) {
	t.Parallel()
	good := readFile(t, ukiLog)
	pcrs := recordedPCRs(t, "uki-secureboot")
	if l, err := replayFirmware(good, crypto.SHA256, pcrs); err != nil || l.Firmware() != nil {
		t.Fatalf("the log as recorded: %v, %v", err, l.Firmware())
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
		{"longer than allowed", make([]byte, MaxFirmwareLen+1)},
		{"zeros", make([]byte, 10_000)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := replayFirmware(tt.log, crypto.SHA256, pcrs)
			if err == nil {
				err = l.Firmware()
			}
			if !errors.Is(err, ErrLog) {
				t.Errorf("replay = %v, want %v", err, ErrLog)
			}
		})
	}
}

// Types are not hashed, so relabelling an event must not change what is found.
func TestRelabelledEventsDoNotTurnSecureBootOn(t *testing.T) {
	t.Parallel()
	for _, recording := range []string{"uki-secureboot", "kernel-no-secureboot"} {
		events := splitLog(t, readFile(t, filepath.Join(recordings, recording, "binary_bios_measurements")))
		pcrs := recordedPCRs(t, recording)
		want := recording == "uki-secureboot"
		for i := 1; i < len(events); i++ {
			for _, typ := range []uint32{0, 3, 4, 5, 13, 0x80000001, 0x80000002, 0x80000003, 0x80000007, 0x800000e0, 0xdeadbeef} {
				changed := bytes.Clone(events[i])
				binary.LittleEndian.PutUint32(changed[4:], typ)
				log := bytes.Join(append(append(append([][]byte(nil), events[:i]...), changed), events[i+1:]...), nil)
				l, err := replayFirmware(log, crypto.SHA256, pcrs)
				if err != nil || l.Firmware() != nil {
					continue
				}
				if s, err := l.SecureBoot(); err == nil && s.On && !want {
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
	l, err := replayFirmware(bytes.Join(without, nil), crypto.SHA256, pcrs)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Firmware(); !errors.Is(err, ErrLog) {
		t.Errorf("firmware = %v, want %v", err, ErrLog)
	}
	if _, err := l.SecureBoot(); !errors.Is(err, ErrLog) {
		t.Errorf("secureBoot = %v, want %v", err, ErrLog)
	}
	// Nor where the PCR was never extended.
	pcrs[7] = make([]byte, 32)
	if l, err = replayFirmware(bytes.Join(without, nil), crypto.SHA256, pcrs); err != nil {
		t.Fatal(err)
	}
	if _, err := l.SecureBoot(); !errors.Is(err, ErrLog) {
		t.Errorf("secureBoot of an empty PCR 7 = %v, want %v", err, ErrLog)
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
			_, err := Log{hash: crypto.SHA256, proven: tt.proven}.CommandLine(line, 0)
			if (err == nil) != tt.want {
				t.Errorf("commandLine = %v", err)
			}
		})
	}
	l, err := replayFirmware(readFile(t, ukiLog), crypto.SHA256, recordedPCRs(t, "uki-secureboot"))
	if err != nil {
		t.Fatal(err)
	}
	if pcr, err := l.CommandLine(ukiCommandLine, 0); err != nil || pcr != 9 {
		t.Errorf("the recorded one: PCR %d, %v", pcr, err)
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

// playedInto computes what a log's events make of the PCRs of a bank, nil if the
// log has no digests for it.
func playedInto(t testing.TB, log []byte, hash crypto.Hash) map[uint][]byte {
	t.Helper()
	l, err := tcg.ParseEventLog(log)
	if err != nil {
		t.Fatal(err)
	}
	algorithm := map[crypto.Hash]tcg.HashAlg{crypto.SHA1: tcg.HashSHA1, crypto.SHA256: tcg.HashSHA256}[hash]
	if !slices.Contains(l.Algs, algorithm) {
		return nil
	}
	pcrs := make(map[uint][]byte)
	for pcr := range uint(pcrCount) {
		pcrs[pcr] = make([]byte, hash.Size())
	}
	for _, e := range l.Events(algorithm) {
		if e.Type == evNoAction && e.Index == 0 && bytes.HasPrefix(e.Data, []byte("StartupLocality")) {
			pcrs[0][hash.Size()-1] = e.Data[len(e.Data)-1]
		}
		if e.Type != evNoAction {
			pcrs[uint(e.Index)] = hashOf(hash, append(bytes.Clone(pcrs[uint(e.Index)]), e.Digest...))
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

// The command line that testdata/uki-secureboot was booted with.
const ukiCommandLine = "root=LABEL=vmroot rw console=ttyS0 ima_policy=tcb ima_hash=sha256 systemd.show_status=no quiet"

// recordedPCRs reads the values that the kernel showed at the time.
func recordedPCRs(t testing.TB, recording string) map[uint][]byte {
	t.Helper()
	pcrs := make(map[uint][]byte)
	for line := range strings.Lines(string(readFile(t, filepath.Join(recordings, recording, "pcrs-sysfs.txt")))) {
		var bank, value string
		var pcr uint
		if _, err := fmt.Sscan(line, &bank, &pcr, &value); err != nil {
			t.Fatal(err)
		}
		if bank == "sha256" {
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
