package bootlog

import (
	"bytes"
	"crypto"
	"path/filepath"
	"testing"

	tcg "github.com/google/go-attestation/attest"
)

func FuzzEventLog(f *testing.F) {
	logs, err := filepath.Glob(recordings + "/*/binary_bios_measurements")
	if err != nil || len(logs) == 0 {
		f.Fatal(logs, err)
	}
	for _, path := range logs {
		f.Add(readFile(f, path))
	}
	pcrs := recordedPCRs(f, "uki-secureboot")
	want, err := replayFirmware(readFile(f, ukiLog), crypto.SHA256, pcrs)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := replayFirmware(b, crypto.SHA256, pcrs)
		if err != nil || l.Firmware() != nil {
			return
		}
		for pcr, events := range l.proven {
			if len(events) != len(want.proven[pcr]) {
				t.Errorf("PCR %d was explained by %d events, really %d", pcr, len(events), len(want.proven[pcr]))
			}
		}
		l.SecureBoot()
		l.CommandLine("quiet", 0)
	})
}

func FuzzUserspaceLog(f *testing.F) {
	f.Add([]byte(measured(11, "enter-initrd") + nvRecord + measured(9, "one") + measured(9, "two")))
	f.Add([]byte("\x1e{\"content\":[[\"\\\"]\"]]}\n"))
	firmware := readFile(f, ukiLog)
	quoted := extended(recordedPCRs(f, "uki-secureboot"), 9, "one", "two")
	l, err := replayFirmware(firmware, crypto.SHA256, quoted)
	if err != nil {
		f.Fatal(err)
	}
	events := l.unproven[9].events
	f.Fuzz(func(t *testing.T, b []byte) {
		records, err := parseUserspaceLog(b, crypto.SHA256)
		if len(records) > maxUserspaceRecords || err != nil && records != nil {
			t.Errorf("%d records, %v", len(records), err)
		}
		l := Log{hash: crypto.SHA256, proven: map[uint][]tcg.Event{}, unproven: map[uint]unproven{9: {events, ErrLog}}}
		l.replayUserspace(b, quoted)
		if _, ok := l.proven[9]; !ok {
			return
		}
		for i, text := range []string{"one", "two"} {
			of9 := pcrRecords(records, 9)
			if len(of9) < 2 || !bytes.Equal(of9[i].digest, hashOf(crypto.SHA256, []byte(text))) || len(l.proven[9]) != len(events) {
				t.Fatalf("PCR 9 is explained by %q", b)
			}
		}
	})
}

// Whoever extends PCR 7 chooses an event's type and data; its digest then fits.
func FuzzSecureBootEvents(f *testing.F) {
	l, err := replayFirmware(readFile(f, ukiLog), crypto.SHA256, recordedPCRs(f, "uki-secureboot"))
	if err != nil {
		f.Fatal(err)
	}
	off := bytes.Clone(l.proven[7][0].Data) // SecureBoot is measured first
	off[len(off)-1] = 0
	before := []tcg.Event{{Index: 7, Type: evVariableConfig, Data: off, Digest: hashOf(crypto.SHA256, off)}}
	for _, e := range l.proven[7] {
		f.Add(uint32(e.Type), e.Data, uint32(evSeparator), make([]byte, 4))
	}
	f.Fuzz(func(t *testing.T, type1 uint32, data1 []byte, type2 uint32, data2 []byte) {
		events := before
		for _, e := range []tcg.Event{{Type: tcg.EventType(type1), Data: data1}, {Type: tcg.EventType(type2), Data: data2}} {
			e.Index, e.Digest = 7, hashOf(crypto.SHA256, e.Data)
			events = append(events[:len(events):len(events)], e)
		}
		if s, err := (Log{hash: crypto.SHA256, proven: map[uint][]tcg.Event{7: events}}).SecureBoot(); err == nil && s.On {
			t.Errorf("Secure Boot is on after it was measured off: %x %q, %x %q", type1, data1, type2, data2)
		}
	})
}
