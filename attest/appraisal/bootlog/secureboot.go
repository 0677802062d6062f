package bootlog

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"unicode/utf16"

	tcg "github.com/google/go-attestation/attest"
)

// Types of events, TCG PC Client Platform Firmware Profile, 10.4.1.
const (
	evNoAction       tcg.EventType = 0x00000003
	evSeparator      tcg.EventType = 0x00000004
	evVariableConfig tcg.EventType = 0x80000001 // EV_EFI_VARIABLE_DRIVER_CONFIG
	evAction         tcg.EventType = 0x80000007 // EV_EFI_ACTION
	evAuthority      tcg.EventType = 0x800000e0 // EV_EFI_VARIABLE_AUTHORITY
)

// SecureBoot is the state of Secure Boot.
type SecureBoot struct {
	On bool
	// Authorities are the SHA-256 digests, in hexadecimal, of the certificates with
	// which what was booted was verified.
	Authorities []string
	// Hashes says that programs may boot by their digest, without a signature.
	Hashes bool
}

// SecureBoot reads the state of Secure Boot from PCR 7. Types are anybody's word,
// so each event has to be what its type says, wholly and with its digest.
func (l Log) SecureBoot() (SecureBoot, error) {
	if u, ok := l.unproven[7]; ok {
		return SecureBoot{}, fmt.Errorf("%w: PCR 7, where Secure Boot is measured: %w", ErrLog, u.why)
	}
	if len(l.proven[7]) == 0 {
		return SecureBoot{}, fmt.Errorf("%w: nothing was measured into PCR 7, where Secure Boot is", ErrLog)
	}
	r := secureBootReader{log: l, variables: make(map[string][]byte)}
	for i, e := range l.proven[7] {
		if err := r.event(e); err != nil {
			return SecureBoot{}, fmt.Errorf("%w: Secure Boot: event %d of PCR 7: %w", ErrLog, i+1, err)
		}
	}
	s, err := r.state()
	if err != nil {
		return SecureBoot{}, fmt.Errorf("%w: Secure Boot: %w", ErrLog, err)
	}
	return s, nil
}

// A secureBootReader reads the events of PCR 7.
type secureBootReader struct {
	log         Log
	variables   map[string][]byte // by name
	separator   bool              // seen: the firmware's own configuration is over
	authorities []string
}

func (r *secureBootReader) event(e tcg.Event) error {
	switch e.Type {
	case evSeparator:
		if r.separator || !bytes.Equal(e.Data, make([]byte, 4)) || !r.log.is(e, e.Data) {
			return errors.New("a wrong separator, or a second one")
		}
		r.separator = true
		return nil
	case evAction:
		if string(e.Data) != "DMA Protection Disabled" || !r.log.is(e, e.Data) {
			return fmt.Errorf("action %.40q", e.Data) // such as "UEFI Debug Mode"
		}
		return nil
	case evVariableConfig:
		return r.variable(e)
	case evAuthority:
		return r.authority(e)
	}
	return fmt.Errorf("type %#x does not belong there", uint32(e.Type))
}

// variable reads one of the variables that configure Secure Boot.
func (r *secureBootReader) variable(e tcg.Event) error {
	_, name, data, err := parseVariable(e.Data)
	switch {
	case err != nil:
		return err
	case !r.log.is(e, e.Data):
		return fmt.Errorf("variable %.40q does not have the digest of its data", name)
	case r.separator:
		return fmt.Errorf("variable %.40q after the separator", name)
	}
	if _, ok := r.variables[name]; ok {
		return fmt.Errorf("variable %.40q a second time", name)
	}
	r.variables[name] = data
	return nil
}

// shimLock is the GUID of shim's variables.
var shimLock = []byte{0x50, 0xab, 0x5d, 0x60, 0x46, 0xe0, 0x00, 0x43, 0xab, 0xb6, 0x3d, 0xd8, 0x10, 0xdd, 0x8b, 0x23}

const guidLen = 16

// authority reads with what something was verified: an EFI_SIGNATURE_DATA, which
// is its owner's GUID and a certificate.
func (r *secureBootReader) authority(e tcg.Event) error {
	guid, name, data, err := parseVariable(e.Data)
	if err != nil {
		return err
	}
	matches := r.log.is(e, e.Data)
	// These two are shim's settings, and nothing was verified with them.
	if !bytes.Equal(guid, shimLock) || name != "SbatLevel" && name != "MokListTrusted" {
		der := data[min(guidLen, len(data)):]
		if _, err := x509.ParseCertificate(der); err != nil {
			// An old shim leaves the owner out, and adds a byte that it does not hash.
			if _, bare := x509.ParseCertificate(data); bare != nil {
				return fmt.Errorf("authority %.40q: %w", name, err)
			}
			der = data
			matches = matches || r.log.is(e, e.Data[:len(e.Data)-1])
		}
		sum := sha256.Sum256(der)
		r.authorities = append(r.authorities, hex.EncodeToString(sum[:]))
	}
	if !matches {
		return fmt.Errorf("authority %.40q does not have the digest of its data", name)
	}
	return nil
}

func (r *secureBootReader) state() (SecureBoot, error) {
	enabled, ok := r.variables["SecureBoot"]
	if ok && len(enabled) != 1 {
		return SecureBoot{}, fmt.Errorf("variable SecureBoot has %d bytes, not one", len(enabled))
	}
	if !ok || enabled[0] != 1 {
		return SecureBoot{}, nil
	}
	if len(r.authorities) == 0 {
		return SecureBoot{}, errors.New("it is on, but nothing was verified")
	}
	// What is in PK and KEK decides nothing: they say who may change db.
	for _, name := range []string{"PK", "KEK", "db"} {
		if len(r.variables[name]) == 0 {
			return SecureBoot{}, fmt.Errorf("it is on, but %s is empty", name)
		}
	}
	hashes, err := hasDigests(r.variables["db"])
	if err != nil {
		return SecureBoot{}, fmt.Errorf("variable db: %w", err)
	}
	slices.Sort(r.authorities)
	return SecureBoot{On: true, Authorities: slices.Compact(r.authorities), Hashes: hashes}, nil
}

// parseVariable reads an UEFI_VARIABLE_DATA: TCG PC Client Platform Firmware
// Profile, 10.2.6.
func parseVariable(b []byte) (guid []byte, name string, data []byte, err error) {
	const header = guidLen + 8 + 8
	if len(b) < header {
		return nil, "", nil, errors.New("a variable that is cut off")
	}
	nameLen, dataLen := binary.LittleEndian.Uint64(b[guidLen:]), binary.LittleEndian.Uint64(b[guidLen+8:])
	guid, b = b[:guidLen], b[header:]
	if nameLen > uint64(len(b))/2 || dataLen > uint64(len(b))-2*nameLen {
		return nil, "", nil, errors.New("a variable that is cut off")
	}
	units := make([]uint16, nameLen)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return guid, string(utf16.Decode(units)), b[2*nameLen : 2*nameLen+dataLen], nil
}

// certX509 is EFI_CERT_X509_GUID.
var certX509 = []byte{0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72}

// hasDigests reports whether a signature database has anything but certificates:
// UEFI 2.10, 32.4.1, EFI_SIGNATURE_LIST.
func hasDigests(db []byte) (found bool, err error) {
	const header = guidLen + 4 + 4 + 4
	for len(db) > 0 {
		if len(db) < header {
			return false, errors.New("a signature list that is cut off")
		}
		size := binary.LittleEndian.Uint32(db[guidLen:])
		if size < header || uint64(size) > uint64(len(db)) {
			return false, errors.New("a signature list that is cut off")
		}
		if size > header && !bytes.Equal(db[:guidLen], certX509) {
			found = true
		}
		db = db[size:]
	}
	return found, nil
}
