package appraisal_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	tcg "github.com/google/go-attestation/attest"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
	"github.com/vouchd/vouchd/state"
)

// The command line that testdata/uki-secureboot was booted with.
const ukiCommandLine = "root=LABEL=vmroot rw console=ttyS0 ima_policy=tcb ima_hash=sha256 systemd.show_status=no quiet"

// A machine is a real TPM that went through a recorded boot, and the files
// that evidence about it takes its logs from.
type machine struct {
	*node.Node
	real   *tpmtest.TPM
	states *state.Dir
	from   node.Sources
}

// booted plays a recorded boot into a TPM as firmware and kernel did.
func booted(t testing.TB, recording string, real *tpmtest.TPM) *machine {
	t.Helper()
	tpm, err := node.Open(t.Context(), real.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tpm.Close() })
	dir := filepath.Join("testdata", recording)
	states := store(t)
	m := &machine{Node: load(t, tpm, states), real: real, states: states, from: node.Sources{
		EventLog:    filepath.Join(dir, "binary_bios_measurements"),
		IMA:         filepath.Join(dir, "ima_binary_runtime_measurements"),
		CommandLine: file(t, ukiCommandLine+"\n"),
		Stat:        file(t, "cpu 1 2 3\nbtime 1700000000\nprocesses 5\n"),
		Hostname:    "vm-1",
	}}
	m.play(t, readFile(t, m.from.EventLog))
	m.extend(t, 11, []byte("sysinit"), []byte("ready"))
	entries, err := appraisal.IMAData(readFile(t, m.from.IMA))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries[:len(entries)-1] { // the last came after the PCRs were recorded
		m.extend(t, 10, e)
	}
	return m
}

// play extends the PCRs with the digests of an event log.
func (m *machine) play(t testing.TB, log []byte) {
	t.Helper()
	l, err := tcg.ParseEventLog(log)
	if err != nil {
		t.Fatal(err)
	}
	const noAction = 3
	m.real.Do(func(tr transport.TPM) error {
		sha1s := l.Events(tcg.HashSHA1)
		for i, e := range l.Events(tcg.HashSHA256) {
			if e.Type == noAction {
				continue
			}
			if err := extendPCR(tr, e.Index, sha1s[i].Digest, e.Digest); err != nil {
				return err
			}
		}
		return nil
	})
}

// extend extends a PCR with the digests of data, as software does.
func (m *machine) extend(t testing.TB, pcr int, all ...[]byte) {
	t.Helper()
	m.real.Do(func(tr transport.TPM) error {
		for _, data := range all {
			d := sha256.Sum256(data)
			if err := extendPCR(tr, pcr, d[:20], d[:]); err != nil {
				return err
			}
		}
		return nil
	})
}

func extendPCR(tr transport.TPM, pcr int, sha1, sha256 []byte) error {
	digests := []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: sha256}}
	if len(sha1) > 0 {
		digests = append(digests, tpm2.TPMTHA{HashAlg: tpm2.TPMAlgSHA1, Digest: sha1})
	}
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: digests},
	}.Execute(tr)
	return err
}

// evidence returns evidence and what a verifier that did everything right has
// in its hands.
func (m *machine) evidence(t testing.TB) ([]byte, appraisal.Given) {
	t.Helper()
	given := appraisal.Given{Nonce: someBytes(32), Now: time.Now()}
	e, err := m.Evidence(t.Context(), given.Nonce, m.from)
	if err != nil {
		t.Fatal(err)
	}
	challenge, kept, err := appraisal.Challenge(e)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := m.Activate(t.Context(), challenge)
	if err != nil {
		t.Fatal(err)
	}
	a, err := appraisal.VerifyActivation(kept, answer)
	if err != nil {
		t.Fatal(err)
	}
	given.Activation = &a
	return e, given
}

// quoteOf has the machine's AK quote PCRs for any data, as whoever controls the
// host can.
func (m *machine) quoteOf(t testing.TB, bank tpm2.TPMAlgID, pcrs []uint, data []byte) (q appraisal.Quote) {
	t.Helper()
	saved, _, err := m.states.Load("tpm-keys", 1)
	if err != nil {
		t.Fatal(err)
	}
	var keys struct {
		SRK struct{ Handle tpm2.TPMHandle }
		AK  struct{ Public, Private []byte }
	}
	if err := json.Unmarshal(saved, &keys); err != nil {
		t.Fatal(err)
	}
	selected := appraisal.Selection(bank, pcrs)
	m.real.Do(func(tr transport.TPM) error {
		srk, err := tpm2.ReadPublic{ObjectHandle: keys.SRK.Handle}.Execute(tr)
		if err != nil {
			return err
		}
		ak, err := tpm2.Load{
			ParentHandle: tpm2.AuthHandle{Handle: keys.SRK.Handle, Name: srk.Name, Auth: tpm2.PasswordAuth(nil)},
			InPrivate:    tpm2.TPM2BPrivate{Buffer: keys.AK.Private},
			InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](keys.AK.Public),
		}.Execute(tr)
		if err != nil {
			return err
		}
		defer tpm2.FlushContext{FlushHandle: ak.ObjectHandle}.Execute(tr)
		q.PCRs = make(map[uint]appraisal.Hex)
		for _, pcr := range pcrs {
			r, err := tpm2.PCRRead{PCRSelectionIn: appraisal.Selection(bank, []uint{pcr})}.Execute(tr)
			if err != nil {
				return err
			}
			q.PCRs[pcr] = r.PCRValues.Digests[0].Buffer
		}
		r, err := tpm2.Quote{
			SignHandle:     tpm2.AuthHandle{Handle: ak.ObjectHandle, Name: ak.Name, Auth: tpm2.PasswordAuth(nil)},
			QualifyingData: tpm2.TPM2BData{Buffer: data},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			PCRSelect:      selected,
		}.Execute(tr)
		if err != nil {
			return err
		}
		q.Signed = appraisal.Signed{Attested: r.Quoted.Bytes(), Signature: tpm2.Marshal(r.Signature)}
		return nil
	})
	return q
}

// recordedPCRs reads the values that the kernel showed at the time.
func recordedPCRs(t testing.TB, recording string) map[uint]appraisal.Hex {
	t.Helper()
	pcrs := make(map[uint]appraisal.Hex)
	for line := range strings.Lines(string(readFile(t, filepath.Join("testdata", recording, "pcrs-sysfs.txt")))) {
		var bank, value string
		var pcr uint
		if _, err := fmt.Sscan(line, &bank, &pcr, &value); err != nil {
			t.Fatal(err)
		}
		if bank == appraisal.BankSHA256 {
			b, err := hex.DecodeString(value)
			if err != nil {
				t.Fatal(err)
			}
			pcrs[pcr] = b
		}
	}
	return pcrs
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func file(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRecordedBootsPlayBack(t *testing.T) {
	t.Parallel()
	for _, recording := range []string{"uki-secureboot", "kernel-no-secureboot"} {
		t.Run(recording, func(t *testing.T) {
			t.Parallel()
			m := booted(t, recording, tpmtest.Start(t))
			e, _ := m.evidence(t)
			parsed, err := appraisal.ParseEvidence(e)
			if err != nil {
				t.Fatal(err)
			}
			for pcr, want := range recordedPCRs(t, recording) {
				if pcr == 11 && recording == "kernel-no-secureboot" {
					continue // nobody measured phases there
				}
				if !bytes.Equal(parsed.Quote.PCRs[pcr], want) {
					t.Errorf("PCR %d is %x, recorded %x", pcr, parsed.Quote.PCRs[pcr], want)
				}
			}
			if got := parsed.Host.BootedAt.Unix(); got != 1700000000 {
				t.Errorf("booted at %d", got)
			}
		})
	}
}
