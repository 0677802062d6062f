// Package bootlog replays what firmware, boot loader, kernel and systemd say that they
// measured, and reads from it how a machine booted.
//
// A log is anybody's word. What counts is that its digests lead to the values of PCRs
// that a TPM quoted, and then only what a digest covers. So [Replay] proves PCRs, and
// facts are read from the events of a proven PCR only, at places that software which
// runs later cannot reach.
package bootlog

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"

	tcg "github.com/google/go-attestation/attest"
)

// MaxFirmwareLen bounds the firmware's log, in bytes. One is some 10 to 200 KiB.
const MaxFirmwareLen = 4 << 20

// ErrLog means that an event log is not the one behind the quoted PCRs,
// or does not say what it is asked about.
var ErrLog = errors.New("the event log does not explain the quoted PCRs")

// A Log is what was measured, as far as the quoted PCRs prove it.
type Log struct {
	hash     crypto.Hash
	proven   map[uint][]tcg.Event // the firmware's events in each PCR whose quoted value is explained
	unproven map[uint]unproven    // the PCRs that were extended and are not explained
}

const pcrCount = 24

// unproven is what a log says about a PCR whose value it does not explain.
type unproven struct {
	events []tcg.Event
	why    error
}

// Replay replays the firmware's event log, and after it systemd's log of what user space
// measured, to the quoted values of PCRs 0 to 23 of a bank.
func Replay(firmware, userspace []byte, hash crypto.Hash, pcrs map[uint][]byte) (Log, error) {
	l, err := replayFirmware(firmware, hash, pcrs)
	if err == nil {
		l.replayUserspace(userspace, pcrs)
	}
	return l, err
}

// replayFirmware replays an event log PCR by PCR. A log is quoted through the
// PCRs only: the order of events of different PCRs, their types and whatever
// in their data was not hashed are anybody's word.
func replayFirmware(data []byte, hash crypto.Hash, pcrs map[uint][]byte) (l Log, err error) {
	defer func() { // a parser of somebody else's, on an attacker's bytes
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: parsing it panicked", ErrLog)
		}
	}()
	if len(data) == 0 {
		return Log{}, fmt.Errorf("%w: the evidence has none", ErrLog)
	}
	if len(data) > MaxFirmwareLen {
		return Log{}, fmt.Errorf("%w: %d bytes are more than %d", ErrLog, len(data), MaxFirmwareLen)
	}
	log, err := tcg.ParseEventLog(data)
	if err != nil {
		return Log{}, fmt.Errorf("%w: %w", ErrLog, err)
	}
	algorithm := map[crypto.Hash]tcg.HashAlg{crypto.SHA1: tcg.HashSHA1, crypto.SHA256: tcg.HashSHA256}[hash]
	if !slices.Contains(log.Algs, algorithm) {
		return Log{}, fmt.Errorf("unsupported event log: it has no %v digests, which the quote is of, only %v", algorithm, log.Algs)
	}
	l = Log{hash: hash, proven: make(map[uint][]tcg.Event), unproven: make(map[uint]unproven)}
	all := log.Events(algorithm)
	for pcr := range uint(pcrCount) {
		events, err := log.Verify([]tcg.PCR{{Index: int(pcr), Digest: pcrs[pcr], DigestAlg: hash}})
		switch {
		case err != nil:
			events = eventsOf(all, pcr)
			why := fmt.Errorf("the firmware's %d events do not add up to its value", len(events))
			if slices.ContainsFunc(events, func(e tcg.Event) bool { return len(e.Digest) == 0 }) {
				why = fmt.Errorf("an event has no %v digest", algorithm)
			}
			l.unproven[pcr] = unproven{events, why}
		case len(events) > 0:
			l.proven[pcr] = events
		case !bytes.Equal(pcrs[pcr], make([]byte, hash.Size())):
			l.unproven[pcr] = unproven{nil, errors.New("it was extended, and the firmware's log has no event of it")}
		}
	}
	return l, nil
}

// eventsOf returns the events that extended a PCR.
func eventsOf(all []tcg.Event, pcr uint) (events []tcg.Event) {
	for _, e := range all {
		if e.Index == int(pcr) && e.Type != evNoAction {
			events = append(events, e)
		}
	}
	return events
}

// Firmware returns an error unless the log explains all PCRs that the firmware
// extends. Later ones may hold more than the firmware's log: systemd measures
// the phases of the boot into 11.
func (l Log) Firmware() error {
	for pcr := range uint(8) {
		if u, ok := l.unproven[pcr]; ok {
			return fmt.Errorf("%w: PCR %d: %w", ErrLog, pcr, u.why)
		}
	}
	if len(l.proven[0]) == 0 {
		return fmt.Errorf("%w: nothing was measured into PCR 0", ErrLog)
	}
	return nil
}

// commandLinePCRs are where a kernel's command line may be measured, in the
// order in which it is looked for.
var commandLinePCRs = []uint{9, 8, 12}

// CommandLine returns the PCR that the kernel's command line was measured into,
// or an error unless it was exactly this one. If into is not zero, no other PCR
// counts.
//
// A measurement is a digest, and software that runs later can add another, so
// the place counts: what a kernel's own boot stub measures into PCR 9 (Linux
// 5.17) and systemd's stub into PCR 12 is the first event there, and GRUB's
// the first in PCR 8 that looks like one, after events that explain themselves.
func (l Log) CommandLine(line string, into uint) (uint, error) {
	var why []string
	for _, pcr := range commandLinePCRs {
		if into != 0 && into != pcr {
			continue
		}
		err := l.measuredInto(pcr, line)
		if err == nil && pcr == 12 && into != 12 && l.extended(9) {
			// The same boot stub would have shown it there. Software that runs
			// later can be the first to extend 12.
			err = errors.New("it does not count, because PCR 9 was extended too; see measured_into")
		}
		if err == nil {
			return pcr, nil
		}
		why = append(why, fmt.Sprintf("PCR %d: %v", pcr, err))
	}
	return 0, fmt.Errorf("%w: the kernel's command line was not measured as the host says it was (%s)", ErrLog, strings.Join(why, "; "))
}

// extended reports whether anything was measured into a PCR, by whomever.
func (l Log) extended(pcr uint) bool {
	_, proven := l.proven[pcr]
	_, unproven := l.unproven[pcr]
	return proven || unproven
}

// measuredInto returns an error unless the line was measured into a PCR first.
func (l Log) measuredInto(pcr uint, line string) error {
	if u, ok := l.unproven[pcr]; ok {
		return u.why
	}
	events := l.proven[pcr]
	if len(events) == 0 {
		return errors.New("the firmware's log has no event of it")
	}
	if pcr == 8 {
		return l.measuredByGRUB(events, strings.TrimPrefix(line, "BOOT_IMAGE="))
	}
	// Some boot loaders pass the terminating zero to the kernel, others do not.
	wide := utf16LE(line)
	if !l.is(events[0], wide) && !l.is(events[0], wide[:len(wide)-2]) {
		return errors.New("its first event is something else")
	}
	return nil
}

func (l Log) measuredByGRUB(events []tcg.Event, line string) error {
	for i, e := range events {
		text, ok := l.grubText(e)
		if !ok {
			return fmt.Errorf("its event %d does not explain itself", i+1)
		}
		if !strings.HasPrefix(text, "/") && !strings.HasPrefix(text, "(") {
			continue // a command of GRUB's, not the path of a kernel
		}
		if text != line {
			return fmt.Errorf("GRUB's is %q", text)
		}
		return nil
	}
	return errors.New("GRUB measured no command line")
}

// grubText returns the text that GRUB measured. The event's data has a word in
// front of it that says what it is, and a zero at its end: "kernel_cmdline: TEXT",
// and in RHEL 8 "grub_kernel_cmdline TEXT". What is hashed is the text, in RHEL 8
// for commands with the zero. The digest decides which form it is.
func (l Log) grubText(e tcg.Event) (string, bool) {
	data := bytes.TrimSuffix(e.Data, []byte{0})
	forms := [][]byte{data}
	for _, separator := range []string{": ", " "} {
		if _, text, ok := bytes.Cut(data, []byte(separator)); ok {
			forms = append(forms, text)
		}
	}
	for _, text := range forms {
		if l.is(e, text) || l.is(e, append(text[:len(text):len(text)], 0)) {
			return strings.TrimRight(string(text), "\x00"), true
		}
	}
	return "", false
}

// is reports whether an event measured b.
func (l Log) is(e tcg.Event, b []byte) bool { return bytes.Equal(hashOf(l.hash, b), e.Digest) }

// utf16LE encodes as UEFI passes command lines, with a terminating zero.
func utf16LE(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = append(b, byte(u), byte(u>>8))
	}
	return append(b, 0, 0)
}

func hashOf(hash crypto.Hash, b []byte) []byte {
	h := hash.New()
	h.Write(b)
	return h.Sum(nil)
}
