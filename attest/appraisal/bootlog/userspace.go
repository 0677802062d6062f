package bootlog

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	tcg "github.com/google/go-attestation/attest"
)

// Bounds of the log of what user space measured. A record has some 500 bytes, and
// a boot makes a few dozen.
const (
	MaxUserspaceLen       = 1 << 20 // bytes
	maxUserspaceRecordLen = 16 << 10
	maxUserspaceRecords   = 4096
	maxUserspaceDepth     = 8
)

// A userspaceRecord is one measurement that systemd made.
type userspaceRecord struct {
	number int // in the log, from 1
	pcr    uint
	digest []byte // of the quoted bank; nil if there is none
}

// parseUserspaceLog parses systemd's log of what it measured, and returns the
// records about PCRs: /run/log/systemd/tpm2-measure.log, in which each record is
// one of the TCG's Canonical Event Log in JSON, framed as a JSON text sequence
// (RFC 7464). Records about NV indices that systemd uses like PCRs are left out.
func parseUserspaceLog(log []byte, hash crypto.Hash) (records []userspaceRecord, err error) {
	if len(log) > MaxUserspaceLen {
		return nil, fmt.Errorf("%d bytes are more than %d", len(log), MaxUserspaceLen)
	}
	number := 0
	for line := range bytes.Lines(log) {
		number++
		r := userspaceRecord{number: number}
		text, framed := bytes.CutPrefix(line, []byte{0x1e})
		text, ended := bytes.CutSuffix(text, []byte{'\n'})
		switch {
		case number > maxUserspaceRecords:
			return nil, fmt.Errorf("more than %d records", maxUserspaceRecords)
		case len(line) > maxUserspaceRecordLen:
			err = fmt.Errorf("%d bytes are more than %d", len(line), maxUserspaceRecordLen)
		case !framed || !ended:
			err = errors.New("it does not begin with a record separator, or is cut off")
		default:
			err = r.parse(text, hash)
		}
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", number, err)
		}
		if r.pcr != noPCR {
			records = append(records, r)
		}
	}
	return records, nil
}

// ReadsUserspace reports whether there is anything in systemd's log that could matter
// to a [Log]: a record of a PCR that facts are read from, or an error to report.
func ReadsUserspace(log []byte) bool {
	records, err := parseUserspaceLog(log, crypto.SHA256)
	return err != nil || slices.ContainsFunc(records, func(r userspaceRecord) bool { return slices.Contains(commandLinePCRs, r.pcr) })
}

const (
	noPCR  = ^uint(0)
	imaPCR = 10
)

func (r *userspaceRecord) parse(text []byte, hash crypto.Hash) error {
	if depth(text) > maxUserspaceDepth {
		return fmt.Errorf("it is nested deeper than %d", maxUserspaceDepth)
	}
	fields, err := object(text)
	if err != nil {
		return err
	}
	pcr, ok := fields["pcr"]
	if !ok {
		r.pcr = noPCR
		return nil
	}
	n, err := strconv.ParseUint(string(pcr), 10, 8)
	if err != nil || n >= pcrCount {
		return fmt.Errorf("pcr %.20q is none", pcr)
	}
	r.pcr = uint(n)
	var digests []json.RawMessage
	if err := json.Unmarshal(fields["digests"], &digests); err != nil {
		return fmt.Errorf("digests: %w", err)
	}
	for _, d := range digests {
		if err := r.add(d, hash); err != nil {
			return fmt.Errorf("digests: %w", err)
		}
	}
	return nil
}

// add takes a digest if it is of the bank.
func (r *userspaceRecord) add(text []byte, hash crypto.Hash) error {
	fields, err := object(text)
	if err != nil {
		return err
	}
	var algorithm, digest string
	if err := errors.Join(json.Unmarshal(fields["hashAlg"], &algorithm), json.Unmarshal(fields["digest"], &digest)); err != nil {
		return err
	}
	if algorithm != map[crypto.Hash]string{crypto.SHA1: "sha1", crypto.SHA256: "sha256"}[hash] {
		return nil
	}
	b, err := hex.DecodeString(digest)
	if err != nil || len(b) != hash.Size() || r.digest != nil {
		return fmt.Errorf("%s: it is malformed, or there are two", algorithm)
	}
	r.digest = b
	return nil
}

// object returns the members of a JSON object, which are those written, once
// each: encoding/json would take the last of several, in any case of letters.
func object(text []byte) (map[string]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("it is not a JSON object")
	}
	members := make(map[string]json.RawMessage)
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, _ := t.(string) // what is before a colon is nothing else
		if _, ok := members[name]; ok {
			return nil, fmt.Errorf("it has %.40q twice", name)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
		members[name] = value
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if d.InputOffset() != int64(len(text)) {
		return nil, errors.New("more follows the object")
	}
	return members, nil
}

// depth returns how deep a JSON text is nested.
func depth(text []byte) (deepest int) {
	now, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			now++
			deepest = max(deepest, now)
		case c == '}' || c == ']':
			now--
		}
	}
	return deepest
}

// replayUserspace explains PCRs by what user space measured after the firmware. The file is
// root's to write, so a record counts only as part of a chain that ends at the
// quoted value, and says nothing about the boot: it can neither change nor come
// before what the firmware's log says, and no fact is read from it. The log was
// read after the quote, so records may follow that the quote does not cover.
//
// PCRs below 8 are the firmware's, and 10 is IMA's, with a list of its own.
func (l *Log) replayUserspace(log []byte, pcrs map[uint][]byte) {
	records, err := parseUserspaceLog(log, l.hash)
	for pcr, u := range l.unproven {
		if pcr < 8 || pcr > 15 || pcr == imaPCR {
			continue
		}
		switch {
		case len(log) == 0:
			u.why = fmt.Errorf("%w, and the evidence has no log of what systemd measured after them", u.why)
		case err != nil:
			u.why = fmt.Errorf("systemd's log of what it measured: %w", err)
		default:
			u.why = l.addUp(u, pcrs[pcr], pcrRecords(records, pcr))
		}
		l.unproven[pcr] = u
		if u.why == nil {
			l.proven[pcr] = u.events
			delete(l.unproven, pcr)
		}
	}
}

func pcrRecords(all []userspaceRecord, pcr uint) []userspaceRecord {
	return slices.DeleteFunc(slices.Clone(all), func(r userspaceRecord) bool { return r.pcr != pcr })
}

// addUp returns an error unless the events and then the first of the records, one
// or more, add up to the value.
func (l *Log) addUp(u unproven, value []byte, records []userspaceRecord) error {
	if len(records) == 0 {
		return fmt.Errorf("%w, and systemd's log has no record of it", u.why)
	}
	if slices.ContainsFunc(u.events, func(e tcg.Event) bool { return len(e.Digest) == 0 }) {
		return u.why
	}
	now := make([]byte, l.hash.Size())
	for _, e := range u.events {
		now = hashOf(l.hash, append(now, e.Digest...))
	}
	for _, r := range records {
		if r.digest == nil {
			return fmt.Errorf("systemd's log of what it measured: record %d has no digest of the quoted bank", r.number)
		}
		if now = hashOf(l.hash, append(now, r.digest...)); bytes.Equal(now, value) {
			return nil
		}
	}
	return fmt.Errorf("the firmware's %d events and the %d records of systemd's log after them, up to record %d, do not add up to its value",
		len(u.events), len(records), records[len(records)-1].number)
}
