package bootlog

import (
	"compress/gzip"
	"crypto"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	tcg "github.com/google/go-attestation/attest"
)

// A publicLog is an event log that another project tests with.
type publicLog struct {
	name string
	data []byte
	pcrs map[crypto.Hash]map[uint][]byte
}

// publicLogs returns the logs of go-tpm-tools, with the PCRs that were recorded, and
// those of go-attestation.
func publicLogs(t *testing.T) (logs []publicLog) {
	t.Helper()
	files, err := filepath.Glob("testdata/go-tpm-tools/*.gz")
	if err != nil || len(files) != 14 {
		t.Fatal(files, err)
	}
	recorded := readFile(t, "testdata/go-tpm-tools/pcrs.txt")
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".gz")
		l := publicLog{name, gunzip(t, file), make(map[crypto.Hash]map[uint][]byte)}
		for line := range strings.Lines(string(recorded)) {
			var of, bank, value string
			var pcr uint
			if _, err := fmt.Sscan(line, &of, &bank, &pcr, &value); err != nil {
				t.Fatal(err)
			}
			if of != name {
				continue
			}
			hash := map[string]crypto.Hash{"sha1": crypto.SHA1, "sha256": crypto.SHA256}[bank]
			if l.pcrs[hash] == nil {
				l.pcrs[hash] = make(map[uint][]byte)
				for pcr := range uint(pcrCount) {
					l.pcrs[hash][pcr] = make([]byte, hash.Size())
				}
			}
			if l.pcrs[hash][pcr], err = hex.DecodeString(value); err != nil {
				t.Fatal(err)
			}
		}
		logs = append(logs, l)
	}
	theirs := filepath.Join(moduleDir(t, "github.com/google/go-attestation"), "attest", "testdata")
	for _, name := range []string{
		"coreos_36_shielded_vm_no_secure_boot_eventlog", "crypto_agile_eventlog", "ebs_event_missing_eventlog", "option_rom_eventlog",
		"sb_cert_eventlog", "ubuntu_2104_shielded_vm_no_secure_boot_eventlog",
	} {
		l := publicLog{name, readFile(t, filepath.Join(theirs, name)), make(map[crypto.Hash]map[uint][]byte)}
		for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
			if pcrs := playedInto(t, l.data, hash); pcrs != nil {
				l.pcrs[hash] = pcrs
			}
		}
		logs = append(logs, l)
	}
	var dump struct {
		Log struct {
			Raw  []byte
			PCRs []tcg.PCR
		}
	}
	if err := json.Unmarshal(readFile(t, filepath.Join(theirs, "windows_gcp_shielded_vm.json")), &dump); err != nil {
		t.Fatal(err)
	}
	windows := publicLog{"windows_gcp_shielded_vm", dump.Log.Raw, map[crypto.Hash]map[uint][]byte{crypto.SHA1: {}}}
	for _, p := range dump.Log.PCRs {
		windows.pcrs[crypto.SHA1][uint(p.Index)] = p.Digest
	}
	return append(logs, windows)
}

func TestPublicEventLogsReplayAsInTheirProjects(t *testing.T) {
	t.Parallel()
	replayed := 0
	for _, log := range publicLogs(t) {
		for hash, pcrs := range log.pcrs {
			t.Run(fmt.Sprint(log.name, " ", hash), func(t *testing.T) {
				l, err := replayFirmware(log.data, hash, pcrs)
				if err != nil {
					t.Fatal(err)
				}
				if err := l.Firmware(); err != nil {
					t.Error(err)
				}
				for pcr, u := range l.unproven {
					if pcr < 10 || pcr == 14 {
						t.Errorf("PCR %d: %v", pcr, u.why)
					}
				}
				replayed++
				sameSecureBoot(t, log.data, l, hash, pcrs)
				for pcr := range l.proven {
					changed := make(map[uint][]byte)
					for p, v := range pcrs {
						changed[p] = v
					}
					changed[pcr] = flip(pcrs[pcr], 0)
					l, err := replayFirmware(log.data, hash, changed)
					if _, ok := l.unproven[pcr]; err != nil || !ok {
						t.Errorf("with another value, PCR %d is explained still: %v", pcr, err)
					}
				}
			})
		}
	}
	if replayed < 30 {
		t.Errorf("%d banks were replayed", replayed)
	}
}

// sameSecureBoot compares what we and go-attestation read from one log.
func sameSecureBoot(t *testing.T, data []byte, l Log, hash crypto.Hash, pcrs map[uint][]byte) {
	t.Helper()
	parsed, err := tcg.ParseEventLog(data)
	if err != nil {
		t.Fatal(err)
	}
	events, err := parsed.Verify([]tcg.PCR{{Index: 7, Digest: pcrs[7], DigestAlg: hash}})
	if err != nil {
		t.Fatal(err)
	}
	theirs, theirErr := tcg.ParseSecurebootState(events)
	ours, err := l.SecureBoot()
	if theirErr != nil && strings.Contains(theirErr.Error(), "failed parsing platform keys: x509: negative serial number") {
		theirErr = nil // AMI's test key, which decides nothing
		theirs = &tcg.SecurebootState{}
	}
	if (err == nil) != (theirErr == nil) {
		t.Errorf("we say %v, go-attestation says %v", err, theirErr)
	}
	if err != nil || theirErr != nil {
		return
	}
	n := len(theirs.PreSeparatorAuthority) + len(theirs.PostSeparatorAuthority)
	if ours.On != theirs.Enabled || ours.On && (ours.Hashes != (len(theirs.PermittedHashes) > 0) || (n > 0) != (len(ours.Authorities) > 0)) {
		t.Errorf("we read %+v, go-attestation %v, %d authorities, %d digests", ours, theirs.Enabled, n, len(theirs.PermittedHashes))
	}
}

// Where a project says that a log of its own must fail, ours fails too and says why.
func TestPublicEventLogsWithQuirksSayWhich(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		hash crypto.Hash
		says string
	}{
		{"arch-linux-workstation", crypto.SHA256, "variable SecureBoot has 0 bytes"},
		{"debian-10", crypto.SHA256, "unsupported event log: it has no SHA256 digests"},
		{"ebs_event_missing_eventlog", crypto.SHA256, "unsupported event log: it has no SHA256 digests"},
		{"windows_gcp_shielded_vm", crypto.SHA256, "no SHA256 digests"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log := publicLogNamed(t, tt.name)
			l, err := replayFirmware(log.data, tt.hash, log.pcrs[tt.hash])
			if err == nil {
				_, err = l.SecureBoot()
			}
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want one that says %q", err, tt.says)
			}
			if strings.HasPrefix(tt.says, "unsupported") && errors.Is(err, ErrLog) {
				t.Errorf("an unsupported log is said not to explain the PCRs: %v", err)
			}
		})
	}
}

// The forms of GRUB 2.02 (RHEL 8), 2.04, 2.06 and 2.12.
func TestCommandLineIsFoundInEveryFormOfGRUBs(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, line string }{
		{"rhel8-uefi", "BOOT_IMAGE=(hd0,gpt2)/boot/vmlinuz-4.18.0-240.22.1.el8_3.x86_64 root=UUID=f3948fb4-cce7-4193-940a-c50052e93bf3 ro net.ifnames=0 biosdevname=0 scsi_mod.use_blk_mq=Y crashkernel=auto console=ttyS0,38400n8"},
		{"ubuntu-1804-amd-sev", "BOOT_IMAGE=/boot/vmlinuz-5.4.0-1046-gcp root=LABEL=cloudimg-rootfs ro console=ttyS0"},
		{"ubuntu-2404-amd-sevsnp", "BOOT_IMAGE=/vmlinuz-6.8.0-1010-gcp root=PARTUUID=8270f3c9-b4e4-4345-80ee-5a62db7ebf3f ro console=ttyS0,115200 panic=-1"},
		{"gdc-host", "BOOT_IMAGE=/vmlinuz-6.9.0-rc7+ root=/dev/mapper/ubuntu--vg-ubuntu--lv ro nohibernate kvm_intel.tdx=on intel_iommu=on"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log := publicLogNamed(t, tt.name)
			l, err := replayFirmware(log.data, crypto.SHA256, log.pcrs[crypto.SHA256])
			if err != nil {
				t.Fatal(err)
			}
			if pcr, err := l.CommandLine(tt.line, 0); err != nil || pcr != 8 {
				t.Errorf("found in PCR %d, %v", pcr, err)
			}
			for _, other := range []string{"", tt.line + " ", tt.line + " init=/bin/sh", strings.TrimPrefix(tt.line, "BOOT_IMAGE=")[1:]} {
				if pcr, err := l.CommandLine(other, 0); err == nil {
					t.Errorf("%q found in PCR %d", other, pcr)
				}
			}
		})
	}
}

func publicLogNamed(t *testing.T, name string) publicLog {
	t.Helper()
	logs := publicLogs(t)
	i := slices.IndexFunc(logs, func(l publicLog) bool { return l.name == name })
	if i < 0 {
		t.Fatalf("no log %s", name)
	}
	return logs[i]
}

func gunzip(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
