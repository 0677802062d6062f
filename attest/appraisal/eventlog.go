package appraisal

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"

	tcg "github.com/google/go-attestation/attest"
)

// ErrEventLog means that an event log is not the one behind the quoted PCRs,
// or does not say what it is asked about.
var ErrEventLog = errors.New("the event log does not explain the quoted PCRs")

// A bootLog is an event log as far as the quoted PCRs prove it.
type bootLog struct {
	proven   map[uint][]tcg.Event // in each PCR whose events make up its quoted value
	unproven []uint               // PCRs with events that do not
}

// replayEventLog replays an event log PCR by PCR. A log is quoted through the
// PCRs only: the order of events of different PCRs, their types and whatever
// in their data was not hashed are anybody's word.
func replayEventLog(data []byte, hash crypto.Hash, pcrs map[uint]Hex) (l bootLog, err error) {
	defer func() { // a parser of somebody else's, on an attacker's bytes
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: parsing it panicked", ErrEventLog)
		}
	}()
	if len(data) == 0 {
		return bootLog{}, fmt.Errorf("%w: the evidence has none", ErrEventLog)
	}
	if len(data) > MaxEventLogLen {
		return bootLog{}, fmt.Errorf("%w: %d bytes are more than %d", ErrEventLog, len(data), MaxEventLogLen)
	}
	log, err := tcg.ParseEventLog(data)
	if err != nil {
		return bootLog{}, fmt.Errorf("%w: %w", ErrEventLog, err)
	}
	l.proven = make(map[uint][]tcg.Event)
	for _, pcr := range AllPCRs {
		events, err := log.Verify([]tcg.PCR{{Index: int(pcr), Digest: pcrs[pcr], DigestAlg: hash}})
		switch {
		case err != nil:
			l.unproven = append(l.unproven, pcr)
		case len(events) > 0:
			l.proven[pcr] = events
		case pcr < 8 && !bytes.Equal(pcrs[pcr], make([]byte, hash.Size())):
			l.unproven = append(l.unproven, pcr) // extended, and the log says nothing
		}
	}
	return l, nil
}

// firmware returns an error unless the log explains all PCRs that the firmware
// extends. Later ones may hold more than the firmware's log: systemd measures
// the phases of the boot into 11.
func (l bootLog) firmware() error {
	if i := slices.IndexFunc(l.unproven, func(pcr uint) bool { return pcr < 8 }); i >= 0 {
		return fmt.Errorf("%w: PCR %d", ErrEventLog, l.unproven[i])
	}
	if len(l.proven[0]) == 0 {
		return fmt.Errorf("%w: nothing was measured into PCR 0", ErrEventLog)
	}
	return nil
}

// secureBoot is the state of Secure Boot.
type secureBoot struct {
	on bool
	// authorities are the SHA-256 digests of the certificates with which what
	// was booted was verified.
	authorities []string
	// hashes says that programs may boot by their digest, without a signature.
	hashes bool
}

func (l bootLog) secureBoot() (s secureBoot, err error) {
	defer func() { // as in replayEventLog
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: parsing it panicked", ErrEventLog)
		}
	}()
	// EventLog.Verify says nothing of a PCR without events.
	if len(l.proven[7]) == 0 {
		return secureBoot{}, fmt.Errorf("%w: PCR 7, where Secure Boot is measured", ErrEventLog)
	}
	state, err := tcg.ParseSecurebootState(append(slices.Clone(l.proven[7]), l.proven[2]...))
	if err != nil {
		return secureBoot{}, fmt.Errorf("%w: Secure Boot: %w", ErrEventLog, err)
	}
	s = secureBoot{on: state.Enabled, hashes: len(state.PermittedHashes) > 0}
	for _, used := range [][]x509.Certificate{state.PreSeparatorAuthority, state.PostSeparatorAuthority} {
		for _, c := range used {
			d := sha256.Sum256(c.Raw)
			s.authorities = append(s.authorities, hex.EncodeToString(d[:]))
		}
	}
	slices.Sort(s.authorities)
	s.authorities = slices.Compact(s.authorities)
	return s, nil
}

// commandLine returns where the kernel's command line was measured, or an
// error unless it was exactly this one.
//
// A measurement is a digest, and software that runs later can add another, so
// the place counts: what a kernel's own boot stub measures into PCR 9 (Linux
// 5.17) and systemd's stub into PCR 12 is the first event there, and GRUB's
// the first in PCR 8 that looks like one, after events that explain themselves.
func (l bootLog) commandLine(line string, hash crypto.Hash) (string, error) {
	wide := hashOf(hash, utf16LE(line))
	for _, pcr := range []uint{9, 12} {
		if events := l.proven[pcr]; len(events) > 0 && bytes.Equal(events[0].Digest, wide) {
			return fmt.Sprintf("PCR %d", pcr), nil
		}
	}
	for _, e := range l.proven[8] {
		text, ok := grubText(e, hash)
		if !ok {
			break
		}
		if !strings.HasPrefix(text, "/") && !strings.HasPrefix(text, "(") {
			continue // a command of GRUB's, not the path of a kernel
		}
		if text == strings.TrimPrefix(line, "BOOT_IMAGE=") {
			return "PCR 8", nil
		}
		break
	}
	return "", fmt.Errorf("%w: the kernel's command line was not measured as the host says it was", ErrEventLog)
}

// utf16LE encodes as UEFI passes command lines, with a terminating zero.
func utf16LE(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = append(b, byte(u), byte(u>>8))
	}
	return append(b, 0, 0)
}

// grubText returns the text that GRUB measured: the event's data with a word
// that says what it is, a colon and a space before it, and a zero at the end.
func grubText(e tcg.Event, hash crypto.Hash) (string, bool) {
	data := bytes.TrimSuffix(e.Data, []byte{0})
	if _, text, ok := bytes.Cut(data, []byte(": ")); ok && bytes.Equal(hashOf(hash, text), e.Digest) {
		return string(text), true
	}
	if bytes.Equal(hashOf(hash, data), e.Digest) {
		return string(data), true
	}
	return "", false
}

func hashOf(hash crypto.Hash, b []byte) []byte {
	h := hash.New()
	h.Write(b)
	return h.Sum(nil)
}
