package bootlog

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	tcg "github.com/google/go-attestation/attest"
)

// What is in PK, KEK and dbx decides nothing; AMI's "AMI Test PK" has a negative serial
// number, which crypto/x509 refuses. What verified something that was booted decides.
func TestOnlyCertificatesThatDecideAreParsed(t *testing.T) {
	t.Parallel()
	l, err := replayFirmware(readFile(t, ukiLog), crypto.SHA256, recordedPCRs(t, "uki-secureboot"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := l.SecureBoot()
	if err != nil || !want.On || want.Hashes || len(want.Authorities) == 0 {
		t.Fatalf("as recorded: %+v, %v", want, err)
	}
	garbage := signatureList(certX509, []byte("no certificate at all"))
	for _, name := range []string{"PK", "KEK", "dbx"} {
		got, err := changed(t, l, name, garbage).SecureBoot()
		if err != nil || !slices.Equal(got.Authorities, want.Authorities) || !got.On || got.Hashes {
			t.Errorf("with garbage in %s: %+v, %v", name, got, err)
		}
	}
	for _, tt := range []struct {
		name, variable string
		data           []byte
		says           string
	}{
		{"no PK", "PK", nil, "PK is empty"},
		{"no KEK", "KEK", nil, "KEK is empty"},
		{"no db", "db", nil, "db is empty"},
		{"a db that is cut off", "db", garbage[:20], "db: a signature list that is cut off"},
		{"a db whose list is longer than it", "db", append(slices.Clone(garbage[:16]), 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), "cut off"},
		{"a db whose list is empty", "db", make([]byte, 28), "cut off"},
		{"two bytes of SecureBoot", "SecureBoot", []byte{1, 1}, "2 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := changed(t, l, tt.variable, tt.data).SecureBoot()
			if !errors.Is(err, ErrLog) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%+v, %v, want an error that says %q", s, err, tt.says)
			}
		})
	}
	if s, err := changed(t, l, "SecureBoot", []byte{0}).SecureBoot(); err != nil || s.On {
		t.Errorf("off: %+v, %v", s, err)
	}
	if s, err := changed(t, l, "db", append(garbage, signatureList(make([]byte, 16), make([]byte, 32))...)).SecureBoot(); err != nil || !s.Hashes {
		t.Errorf("with a digest in db: %+v, %v", s, err)
	}
	for i, e := range l.proven[7] {
		if e.Type != evAuthority {
			continue
		}
		events := slices.Clone(l.proven[7])
		guid, name, data, err := parseVariable(e.Data)
		if err != nil {
			t.Fatal(err)
		}
		data = slices.Clone(data)
		data[guidLen] ^= 1
		events[i] = variable(evAuthority, guid, name, data)
		s, err := Log{hash: crypto.SHA256, proven: map[uint][]tcg.Event{7: events}}.SecureBoot()
		if err == nil || !strings.Contains(err.Error(), "authority") {
			t.Errorf("with a malformed authority: %+v, %v", s, err)
		}
		return
	}
	t.Error("no authority in the log")
}

// changed returns the log as it would be if a variable had held something else.
func changed(t *testing.T, l Log, name string, data []byte) Log {
	t.Helper()
	events := slices.Clone(l.proven[7])
	for i, e := range events {
		if guid, n, _, err := parseVariable(e.Data); e.Type == evVariableConfig && err == nil && n == name {
			events[i] = variable(e.Type, guid, name, data)
			return Log{hash: l.hash, proven: map[uint][]tcg.Event{7: events}}
		}
	}
	t.Fatalf("no variable %s", name)
	return Log{}
}

func variable(typ tcg.EventType, guid []byte, name string, data []byte) tcg.Event {
	units := utf16.Encode([]rune(name))
	b := bytes.Clone(guid)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(units)))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(data)))
	for _, u := range units {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	b = append(b, data...)
	return tcg.Event{Index: 7, Type: typ, Data: b, Digest: hashOf(crypto.SHA256, b)}
}

func signatureList(kind, data []byte) []byte {
	b := bytes.Clone(kind)
	b = binary.LittleEndian.AppendUint32(b, uint32(28+guidLen+len(data)))
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(guidLen+len(data)))
	return append(append(b, make([]byte, guidLen)...), data...)
}
