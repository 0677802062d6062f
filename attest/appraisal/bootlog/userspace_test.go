package bootlog

import (
	"bytes"
	"crypto"
	"fmt"
	"maps"
	"strings"
	"testing"

	tcg "github.com/google/go-attestation/attest"
)

// measured is a record as systemd 259 writes it.
func measured(pcr uint, text string) string {
	return fmt.Sprintf("\x1e"+`{"pcr":%d,"digests":[{"hashAlg":"sha1","digest":"%x"},{"hashAlg":"sha256","digest":"%x"}],`+
		`"content_type":"systemd","content":{"string":%q,"bootId":"2a15f9dd3f8a4be7a9c1f0e5d2b7a613","timestamp":5263910,"eventType":"nvpcr-init"}}`+"\n",
		pcr, hashOf(crypto.SHA1, []byte(text)), hashOf(crypto.SHA256, []byte(text)), text)
}

const nvRecord = "\x1e" + `{"nv_index":30474752,"digests":[{"hashAlg":"sha256","digest":"00"}],"content_type":"systemd","content":{"nvIndexName":"hardware","string":"product-id:missing"}}` + "\n"

// extended returns PCRs after more measurements.
func extended(pcrs map[uint][]byte, pcr uint, texts ...string) map[uint][]byte {
	after := maps.Clone(pcrs)
	for _, text := range texts {
		after[pcr] = hashOf(crypto.SHA256, append(bytes.Clone(after[pcr]), hashOf(crypto.SHA256, []byte(text))...))
	}
	return after
}

// systemd 259 measures the names of its NvPCRs into PCR 9, and logs it in a file.
func TestWhatSystemdMeasuredExplainsAPCRAfterTheFirmware(t *testing.T) {
	t.Parallel()
	firmware := readFile(t, ukiLog)
	pcrs := recordedPCRs(t, "uki-secureboot")
	quoted := extended(pcrs, 9, "one", "two")
	one, two, three := measured(9, "one"), measured(9, "two"), measured(9, "three")
	for _, tt := range []struct {
		name  string
		pcrs  map[uint][]byte
		log   string
		wrong string // "" if the command line is proven
	}{
		{"as it was", quoted, measured(11, "enter-initrd") + one + nvRecord + two + measured(15, "machine-id"), ""},
		{"with records that came after the quote", quoted, one + two + three, ""},
		{"of no measurement into PCR 9", pcrs, measured(11, "ready"), ""},
		{"missing", quoted, "", "PCR 9: the firmware's 2 events do not add up to its value, and the evidence has no log"},
		{"of other PCRs only", quoted, measured(11, "ready"), "PCR 9: the firmware's 2 events do not add up to its value, and systemd's log has no record of it"},
		{"without its last record", quoted, measured(11, "ready") + one, "the 1 records of systemd's log after them, up to record 2, do not add up"},
		{"without its first record", quoted, two, "up to record 1, do not add up"},
		{"in another order", quoted, two + one, "up to record 2, do not add up"},
		{"with a record between", quoted, one + three + two, "up to record 3, do not add up"},
		{"cut off", quoted, one + two[:40], "systemd's log of what it measured: record 2: it does not begin with a record separator, or is cut off"},
		{"without a digest of the bank", quoted, strings.Replace(one, "sha256", "sha384", 1) + two, "record 1 has no digest of the quoted bank"},
		{"of a boot whose firmware measured something else", extended(quoted, 9, "more"), one + two, "up to record 2, do not add up"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := replayFirmware(firmware, crypto.SHA256, tt.pcrs)
			if err != nil {
				t.Fatal(err)
			}
			l.replayUserspace([]byte(tt.log), tt.pcrs)
			pcr, err := l.CommandLine(ukiCommandLine, 0)
			switch {
			case tt.wrong == "" && (err != nil || pcr != 9):
				t.Errorf("PCR %d, %v", pcr, err)
			case tt.wrong != "" && (err == nil || !strings.Contains(err.Error(), tt.wrong)):
				t.Errorf("error %v, want one that says %q", err, tt.wrong)
			}
		})
	}
}

// Whoever is root can extend a PCR and write the file.
func TestUserSpaceCannotRewriteTheBoot(t *testing.T) {
	t.Parallel()
	const good, bad = "root=/dev/sda1 ro", "root=/dev/sda1 ro init=/bin/sh"
	stub := func(line string) tcg.Event {
		return tcg.Event{Index: 9, Digest: hashOf(crypto.SHA256, utf16LE(line)), Data: []byte("LOADED_IMAGE::LoadOptions\x00")}
	}
	value := func(digests ...[]byte) []byte {
		now := make([]byte, 32)
		for _, d := range digests {
			now = hashOf(crypto.SHA256, append(now, d...))
		}
		return now
	}
	record := func(pcr uint, line string) string { return measured(pcr, string(utf16LE(line))) }
	wide := func(line string) []byte { return hashOf(crypto.SHA256, utf16LE(line)) }
	for _, tt := range []struct {
		name   string
		events []tcg.Event // that the evidence says the firmware logged
		pcr    uint
		quoted []byte
		log    string
	}{
		{"the good line measured after the bad one", []tcg.Event{stub(bad)}, 9, value(wide(bad), wide(good)), record(9, good)},
		{"the bad line's event left out of the firmware's log", nil, 9, value(wide(bad), wide(good)), record(9, bad) + record(9, good)},
		{"the only event of the PCR", nil, 9, value(wide(good)), record(9, good)},
		{"the only event of systemd's PCR", nil, 12, value(wide(good)), record(12, good)},
		{"the only event of GRUB's PCR", nil, 8, value(hashOf(crypto.SHA256, []byte(good))), measured(8, good)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pcrs := map[uint][]byte{tt.pcr: tt.quoted}
			l := Log{hash: crypto.SHA256, proven: map[uint][]tcg.Event{}, unproven: map[uint]unproven{tt.pcr: {tt.events, ErrLog}}}
			l.replayUserspace([]byte(tt.log), pcrs)
			if pcr, err := l.CommandLine(good, 0); err == nil {
				t.Errorf("proven by PCR %d", pcr)
			}
		})
	}
	// On a machine whose kernel measured its own line, PCR 12 is for root to extend.
	l := Log{hash: crypto.SHA256, proven: map[uint][]tcg.Event{9: {stub(bad)}, 12: {stub(good)}}}
	if pcr, err := l.CommandLine(good, 0); err == nil || !strings.Contains(err.Error(), "measured_into") {
		t.Errorf("PCR %d, %v", pcr, err)
	}
	if pcr, err := l.CommandLine(good, 12); err != nil || pcr != 12 {
		t.Errorf("where the policy says PCR 12: PCR %d, %v", pcr, err)
	}
	// And PCR 8, unless the policy says where its boot measures.
	l.proven[8] = []tcg.Event{{Digest: hashOf(crypto.SHA256, []byte("/vmlinuz "+good)), Data: []byte("kernel_cmdline: /vmlinuz " + good)}}
	if pcr, err := l.CommandLine("BOOT_IMAGE=/vmlinuz "+good, 9); err == nil {
		t.Errorf("where the policy says PCR 9: PCR %d", pcr)
	}
	// The firmware's own PCRs and IMA's are not user space's to explain.
	for _, pcr := range []uint{0, 4, 7, 10, 16, 23} {
		l := Log{hash: crypto.SHA256, proven: map[uint][]tcg.Event{}, unproven: map[uint]unproven{pcr: {nil, ErrLog}}}
		l.replayUserspace([]byte(measured(pcr, "x")), map[uint][]byte{pcr: value(hashOf(crypto.SHA256, []byte("x")))})
		if _, ok := l.unproven[pcr]; !ok {
			t.Errorf("PCR %d is explained by user space", pcr)
		}
	}
}

func TestUserspaceLogsAreParsedStrictly(t *testing.T) {
	t.Parallel()
	good := measured(9, "one")
	for _, tt := range []struct{ name, log, says string }{
		{"nothing", "", ""},
		{"a record", good, ""},
		{"a record of an NV index", nvRecord, ""},
		{"no separator", good[1:], "record 1"},
		{"two records in a line", good[:len(good)-1] + good, "record 1: more follows"},
		{"an empty line", good + "\n", "record 2"},
		{"not JSON", "\x1e{\n", "record 1"},
		{"an array", "\x1e[]\n", "not a JSON object"},
		{"a member twice", strings.Replace(good, `"content_type":`, `"pcr":7,"content_type":`, 1), `"pcr" twice`},
		{"a member in another case", strings.Replace(good, `"digests"`, `"Digests"`, 1), "digests"},
		{"a PCR that is text", strings.Replace(good, `"pcr":9`, `"pcr":"9"`, 1), "pcr"},
		{"a PCR that is none", strings.Replace(good, `"pcr":9`, `"pcr":24`, 1), "pcr"},
		{"a PCR that is a fraction", strings.Replace(good, `"pcr":9`, `"pcr":9.0`, 1), "pcr"},
		{"a digest of another length", strings.Replace(good, `"sha1"`, `"sha256"`, 1), "sha256"},
		{"two digests of the bank", strings.Replace(good, `[{`, `[`+sha256Digest+`,{`, 1), "there are two"},
		{"a digest that is a number", strings.Replace(good, `"sha1"`, `1`, 1), "digests"},
		{"nested too deep", "\x1e" + `{"content":` + strings.Repeat("[", 9) + strings.Repeat("]", 9) + "}\n", "deeper"},
		{"brackets in a text", "\x1e" + `{"content":"` + strings.Repeat(`[\"{`, 90) + "\"}\n", ""},
		{"a long record", "\x1e" + `{"content":"` + strings.Repeat("x", maxUserspaceRecordLen) + "\"}\n", "more than"},
		{"many records", strings.Repeat("\x1e{}\n", maxUserspaceRecords+1), "more than 4096 records"},
		{"a long log", strings.Repeat("\n", MaxUserspaceLen+1), "more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseUserspaceLog([]byte(tt.log), crypto.SHA256)
			if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want one that says %q", err, tt.says)
			}
		})
	}
}

var sha256Digest = fmt.Sprintf(`{"hashAlg":"sha256","digest":"%064d"}`, 0)

func TestUserspaceLogMattersByItsRecords(t *testing.T) {
	t.Parallel()
	for log, want := range map[string]bool{
		"":                      false,
		measured(11, "ready"):   false,
		nvRecord:                false,
		measured(9, "one"):      true,
		"\x1enot JSON\n":        true, // which the verifier says
		measured(12, "cmdline"): true,
	} {
		if got := ReadsUserspace([]byte(log)); got != want {
			t.Errorf("ReadsUserspace(%.60q) = %t", log, got)
		}
	}
}
