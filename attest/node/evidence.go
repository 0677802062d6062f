package node

import (
	"bytes"
	"context"
	"encoding/hex"
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

	"github.com/vouchd/vouchd/attest/appraisal"
)

// Sources says where evidence finds what is not in the TPM. A file that is
// missing, or whose name is empty, is left out of the evidence.
type Sources struct {
	EventLog    string // the firmware's TCG event log, binary
	IMA         string // IMA's list of measurements, binary
	CommandLine string
	Stat        string // whose line btime says when the machine booted
	Hostname    string
	// UserspaceLog is systemd's log of what it measured, which root alone may open.
	// UserspaceLogFile is the file, opened by whoever may.
	UserspaceLog     string
	UserspaceLogFile *os.File
	Chain            [][]byte // DER certificates above the endorsement key's that the TPM does not hold
}

// LinuxSources returns where Linux has them.
func LinuxSources() Sources {
	hostname, _ := os.Hostname()
	return Sources{
		EventLog:     "/sys/kernel/security/tpm0/binary_bios_measurements",
		IMA:          "/sys/kernel/security/ima/binary_runtime_measurements",
		UserspaceLog: "/run/log/systemd/tpm2-measure.log",
		CommandLine:  "/proc/cmdline",
		Stat:         "/proc/stat",
		Hostname:     hostname,
	}
}

// Evidence returns a self-contained document from which a verifier that chose
// the nonce (16 to 64 bytes, never used before) can tell which machine this is
// and how it booted. It is at most [MaxEvidenceLen] long.
func (n *Node) Evidence(ctx context.Context, nonce []byte, from Sources) ([]byte, error) {
	if len(nonce) < appraisal.MinNonceLen || len(nonce) > appraisal.MaxNonceLen {
		return nil, fmt.Errorf("making evidence: nonce of %d bytes; want %d to %d", len(nonce), appraisal.MinNonceLen, appraisal.MaxNonceLen)
	}
	e := appraisal.Evidence{
		Nonce:   hex.EncodeToString(nonce),
		AK:      appraisal.AttestationKey{Public: n.keys.AK.Public, Created: n.keys.Created},
		EK:      n.keys.EK,
		NodeKey: appraisal.CertifiedKey{Public: n.keys.Node.Public, Signed: n.keys.NodeCertified},
		Counter: appraisal.CertifiedPublic{Public: tpm2.Marshal(appraisal.CounterPublic(n.keys.Counter.Index))},
	}
	if len(e.EK.Certificates) > 0 {
		e.EK.Certificates = append(e.EK.Certificates[:len(e.EK.Certificates):len(e.EK.Certificates)], from.Chain...)
	}
	err := readHost(&e, from)
	if err == nil {
		err = n.tpm.do(ctx, "making evidence", operationLimit, func(tr transport.TPM) error { return n.attestTo(tr, &e, nonce) })
	}
	// These are read after the quote, so they hold everything that the quoted PCRs
	// cover, and perhaps a little more.
	if err == nil {
		e.UserspaceLog, err = readUserspaceLog(ctx, from)
	}
	if err == nil {
		e.IMA, err = readSource(from.IMA, appraisal.MaxIMALen)
	}
	if err != nil {
		return nil, fmt.Errorf("making evidence: %w", err)
	}
	return e.Encode()
}

// readHost fills in what the host says.
func readHost(e *appraisal.Evidence, from Sources) (err error) {
	e.Host.Hostname = from.Hostname
	e.Host.MadeAt = time.Now().UTC().Truncate(time.Second)
	if e.EventLog, err = readSource(from.EventLog, appraisal.MaxEventLogLen); err != nil {
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
func (n *Node) attestTo(tr transport.TPM, e *appraisal.Evidence, nonce []byte) (err error) {
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
	about := appraisal.AboutEvidence(nonce, e.Host)
	e.Bank = appraisal.BankSHA256
	e.Quote, err = quote(tr, ak, tpm2.TPMAlgSHA256, appraisal.AllPCRs, about)
	if errors.Is(err, errNoBank) {
		e.Bank = appraisal.BankSHA1
		e.Quote, err = quote(tr, ak, tpm2.TPMAlgSHA1, appraisal.AllPCRs, about)
	}
	if err != nil {
		return err
	}
	e.Counter.Signed, err = n.certifyCounter(tr, ak, about, n.keys.Counter.authorised())
	return err
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

func readTPMFacts(tr transport.TPM) (appraisal.TPMFacts, error) {
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTFamilyIndicator), PropertyCount: 16}.Execute(tr)
	if err != nil {
		return appraisal.TPMFacts{}, err
	}
	list, err := r.CapabilityData.Data.TPMProperties()
	if err != nil {
		return appraisal.TPMFacts{}, err
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
	return appraisal.TPMFacts{
		Manufacturer: letters(tpm2.TPMPTManufacturer),
		Vendor:       letters(tpm2.TPMPTVendorString1, tpm2.TPMPTVendorString2, tpm2.TPMPTVendorString3, tpm2.TPMPTVendorString4),
		Firmware:     fmt.Sprintf("%d.%d.%d.%d", v1>>16, v1&0xffff, v2>>16, v2&0xffff),
		Revision:     fmt.Sprintf("%d.%02d", value[tpm2.TPMPTRevision]/100, value[tpm2.TPMPTRevision]%100),
	}, nil
}
