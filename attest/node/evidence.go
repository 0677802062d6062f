package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Bounds of evidence, in bytes. An event log is some 10 to 200 KiB, an IMA
// list some 150 bytes for each program and library that ran.
const (
	MaxEvidenceLen = 32 << 20
	MaxEventLogLen = 4 << 20
	MaxIMALen      = 16 << 20
	// MinNonceLen and MaxNonceLen bound the verifier's nonce.
	MinNonceLen = 16
	MaxNonceLen = 64
)

const evidenceVersion = 1

// evidence is the evidence document; docs/evidence.md describes every field.
type evidence struct {
	Version  int             `json:"version"`
	Nonce    string          `json:"nonce"` // hexadecimal
	Host     hostFacts       `json:"host"`
	EK       endorsementKey  `json:"ek"`
	Platform *platformAK     `json:"platform_ak,omitempty"`
	AK       statedAK        `json:"ak"`
	NodeKey  certifiedKey    `json:"node_key"`
	Counter  certifiedPublic `json:"counter"`
	Bank     string          `json:"bank"` // of the quote: "sha256", or "sha1" where there is no other
	Quote    quoteDocument   `json:"quote"`
	EventLog []byte          `json:"event_log,omitempty"`
	IMA      []byte          `json:"ima,omitempty"`
}

// hostFacts are the host's own word. The quote covers them, so nobody changed
// them on the way, but nobody else vouches for them either.
type hostFacts struct {
	Hostname    string    `json:"hostname"`
	MadeAt      time.Time `json:"made_at"`             // by the host's clock
	BootedAt    time.Time `json:"booted_at,omitzero"`  // by the host's clock
	CommandLine string    `json:"kernel_command_line"` // proven where the event log has its digest
	TPM         tpmFacts  `json:"tpm"`
}

// tpmFacts are what the TPM says of itself, TPM 2.0 Part 2, 6.13.
type tpmFacts struct {
	Manufacturer string `json:"manufacturer"`     // TPM_PT_MANUFACTURER, four letters
	Vendor       string `json:"vendor"`           // TPM_PT_VENDOR_STRING_1 to _4
	Firmware     string `json:"firmware_version"` // TPM_PT_FIRMWARE_VERSION_1 and _2, dotted
	Revision     string `json:"revision"`         // of the specification, TPM_PT_REVISION, such as 1.59
}

// Sources says where evidence finds what is not in the TPM. A file that is
// missing, or whose name is empty, is left out of the evidence.
type Sources struct {
	EventLog    string // the firmware's TCG event log, binary
	IMA         string // IMA's list of measurements, binary
	CommandLine string
	Stat        string // whose line btime says when the machine booted
	Hostname    string
	Chain       [][]byte // DER certificates above the endorsement key's that the TPM does not hold
}

// LinuxSources returns where Linux has them.
func LinuxSources() Sources {
	hostname, _ := os.Hostname()
	return Sources{
		EventLog:    "/sys/kernel/security/tpm0/binary_bios_measurements",
		IMA:         "/sys/kernel/security/ima/binary_runtime_measurements",
		CommandLine: "/proc/cmdline",
		Stat:        "/proc/stat",
		Hostname:    hostname,
	}
}

// evidencePCRs are all of them: what of it matters is for the policy to say.
var evidencePCRs = []uint{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23}

// Evidence returns a self-contained document from which a verifier that chose
// the nonce (16 to 64 bytes, never used before) can tell which machine this is
// and how it booted. It is at most [MaxEvidenceLen] long.
func (n *Node) Evidence(ctx context.Context, nonce []byte, from Sources) ([]byte, error) {
	if len(nonce) < MinNonceLen || len(nonce) > MaxNonceLen {
		return nil, fmt.Errorf("making evidence: nonce of %d bytes; want %d to %d", len(nonce), MinNonceLen, MaxNonceLen)
	}
	e := evidence{
		Nonce:   hex.EncodeToString(nonce),
		AK:      statedAK{Public: n.keys.AK.Public, Created: n.keys.Created},
		EK:      n.keys.EK,
		NodeKey: certifiedKey{n.keys.Node.Public, n.keys.NodeCertified},
		Counter: certifiedPublic{Public: tpm2.Marshal(counterPublic(n.keys.Counter.Index))},
	}
	if len(e.EK.Certificates) > 0 {
		e.EK.Certificates = append(e.EK.Certificates[:len(e.EK.Certificates):len(e.EK.Certificates)], from.Chain...)
	}
	err := readHost(&e, from)
	if err == nil {
		err = n.tpm.do(ctx, "making evidence", operationLimit, func(tr transport.TPM) error { return n.attestTo(tr, &e, nonce) })
	}
	// The IMA list is read after the quote, so that it holds all that the
	// quoted PCR 10 does, and perhaps a little more.
	if err == nil {
		e.IMA, err = readSource(from.IMA, MaxIMALen)
	}
	if err != nil {
		return nil, fmt.Errorf("making evidence: %w", err)
	}
	return e.encode()
}

// encode returns the document that [Appraise] and [Challenge] take.
func (e evidence) encode() ([]byte, error) {
	e.Version = evidenceVersion
	b, err := json.Marshal(e)
	if err == nil && len(b) > MaxEvidenceLen {
		err = fmt.Errorf("making evidence: %d bytes are more than %d", len(b), MaxEvidenceLen)
	}
	return b, err
}

// readHost fills in what the host says.
func readHost(e *evidence, from Sources) (err error) {
	e.Host.Hostname = from.Hostname
	e.Host.MadeAt = time.Now().UTC().Truncate(time.Second)
	if e.EventLog, err = readSource(from.EventLog, MaxEventLogLen); err != nil {
		return err
	}
	line, err := readSource(from.CommandLine, 64<<10)
	if err != nil {
		return err
	}
	e.Host.CommandLine = strings.TrimSuffix(string(line), "\n")
	stat, err := readSource(from.Stat, 4<<20)
	if err != nil {
		return err
	}
	e.Host.BootedAt = bootTime(stat)
	return nil
}

// attestTo fills in what the TPM says and signs.
func (n *Node) attestTo(tr transport.TPM, e *evidence, nonce []byte) (err error) {
	if e.Host.TPM, err = readTPMFacts(tr); err != nil {
		return err
	}
	if e.Platform, err = n.readPlatformAK(tr); err != nil {
		return fmt.Errorf("platform's attestation key: %w", err)
	}
	ak, err := n.load(tr, n.keys.AK)
	if err != nil {
		return err
	}
	about := aboutEvidence(nonce, e.Host)
	e.Bank = bankSHA256
	e.Quote, err = quote(tr, ak, tpm2.TPMAlgSHA256, evidencePCRs, about)
	if errors.Is(err, errNoBank) {
		e.Bank = bankSHA1
		e.Quote, err = quote(tr, ak, tpm2.TPMAlgSHA1, evidencePCRs, about)
	}
	if err != nil {
		return err
	}
	e.Counter.signed, err = n.certifyCounter(tr, ak, about, n.keys.Counter.authorised())
	return err
}

const (
	bankSHA256 = "sha256"
	bankSHA1   = "sha1"
)

// aboutEvidence is the qualifying data of evidence. A nonce is the verifier's
// choice, so it is hashed with a name that keeps a verifier from having
// something else signed, a statement for example.
func aboutEvidence(nonce []byte, host hostFacts) []byte {
	facts, err := json.Marshal(host)
	if err != nil {
		return nil // a time beyond the year 9999; no quote has empty qualifying data
	}
	hashed := sha256.Sum256(facts)
	h := sha256.New()
	fmt.Fprintf(h, "vouchd evidence v1\n%d\n", len(nonce))
	h.Write(nonce)
	h.Write(hashed[:])
	return h.Sum(nil)
}

// readSource reads a file of at most limit bytes; one that is missing is empty.
func readSource(path string, limit int64) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("reading %s: more than %d bytes", path, limit)
	}
	return b, err
}

// bootTime reads the line btime of /proc/stat, proc(5).
func bootTime(stat []byte) time.Time {
	for line := range bytes.Lines(stat) {
		if s, ok := strings.CutPrefix(string(line), "btime "); ok {
			if seconds, err := strconv.ParseInt(strings.TrimSpace(s), 10, 40); err == nil {
				return time.Unix(seconds, 0).UTC()
			}
		}
	}
	return time.Time{}
}

func readTPMFacts(tr transport.TPM) (tpmFacts, error) {
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTFamilyIndicator), PropertyCount: 16}.Execute(tr)
	if err != nil {
		return tpmFacts{}, err
	}
	list, err := r.CapabilityData.Data.TPMProperties()
	if err != nil {
		return tpmFacts{}, err
	}
	value := make(map[tpm2.TPMPT]uint32)
	for _, p := range list.TPMProperty {
		value[p.Property] = p.Value
	}
	letters := func(properties ...tpm2.TPMPT) string {
		var b []byte
		for _, p := range properties {
			v := value[p]
			b = append(b, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
		}
		return strings.Map(func(r rune) rune {
			if r < ' ' || r > '~' {
				return -1
			}
			return r
		}, string(b))
	}
	v1, v2 := value[tpm2.TPMPTFirmwareVersion1], value[tpm2.TPMPTFirmwareVersion2]
	return tpmFacts{
		Manufacturer: letters(tpm2.TPMPTManufacturer),
		Vendor:       letters(tpm2.TPMPTVendorString1, tpm2.TPMPTVendorString2, tpm2.TPMPTVendorString3, tpm2.TPMPTVendorString4),
		Firmware:     fmt.Sprintf("%d.%d.%d.%d", v1>>16, v1&0xffff, v2>>16, v2&0xffff),
		Revision:     fmt.Sprintf("%d.%02d", value[tpm2.TPMPTRevision]/100, value[tpm2.TPMPTRevision]%100),
	}, nil
}
