package node

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

// The fuzz targets feed every parser of what comes from outside. They look for
// panics, hangs and, where it can be said, for something accepted that was not
// made by the seeds' machine.

func FuzzVerifyStatement(f *testing.F) {
	tpm, err := Open(f.Context(), tpmtest.Start(f).Address)
	if err != nil {
		f.Fatal(err)
	}
	defer tpm.Close()
	n := load(f, tpm, store(f))
	logKey := newLogKey(f)
	s, err := n.Statement(f.Context(), logKey)
	if err != nil {
		f.Fatal(err)
	}
	anchor, err := n.Anchor(f.Context(), [32]byte{})
	if err != nil {
		f.Fatal(err)
	}
	v, err := VerifyStatement(s, logKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s)
	f.Add(anchor)
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := VerifyStatement(b, logKey); err == nil && got.AKName != v.AKName {
			// Another key than this TPM's can only be one that the fuzzer
			// signed with.
			t.Errorf("statement of AK %s accepted", got.AKName)
		}
		v.Anchor(b, [32]byte{})
		v.Quote(b, [32]byte{})
	})
}

func FuzzAppraise(f *testing.F) {
	m := booted(f, "uki-secureboot", tpmtest.Start(f))
	e, given := m.evidence(f)
	p := learned(f, e)
	var small evidence
	if err := json.Unmarshal(e, &small); err != nil {
		f.Fatal(err)
	}
	small.IMA = nil
	b, err := json.Marshal(small)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	given.Now = time.Unix(1<<31, 0)
	f.Fuzz(func(t *testing.T, b []byte) {
		if r := Appraise(b, p, given); r.Passed && r.AKName != m.AKName() {
			t.Errorf("accepted evidence of AK %s", r.AKName)
		}
		Challenge(b)
		LearnPolicy(b)
	})
}

func FuzzEventLog(f *testing.F) {
	logs, err := filepath.Glob("testdata/*/binary_bios_measurements")
	if err != nil || len(logs) == 0 {
		f.Fatal(logs, err)
	}
	for _, path := range logs {
		f.Add(readFile(f, path))
	}
	pcrs := recordedPCRs(f, "uki-secureboot")
	want, err := replayEventLog(readFile(f, ukiLog), crypto.SHA256, pcrs)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := replayEventLog(b, crypto.SHA256, pcrs)
		if err != nil || l.firmware() != nil {
			return
		}
		for pcr, events := range l.proven {
			if len(events) != len(want.proven[pcr]) {
				t.Errorf("PCR %d was explained by %d events, really %d", pcr, len(events), len(want.proven[pcr]))
			}
		}
		l.secureBoot()
		l.commandLine("quiet", crypto.SHA256)
	})
}

func FuzzIMA(f *testing.F) {
	list := readFile(f, "testdata/uki-secureboot/ima_binary_runtime_measurements")
	f.Add(list[:2000])
	f.Add(list)
	f.Fuzz(func(t *testing.T, b []byte) {
		if entries, err := parseIMA(b); err == nil {
			replayIMA(entries, make([]byte, 32))
		}
	})
}

func FuzzStructures(f *testing.F) {
	for _, template := range []tpm2.TPMTPublic{tpm2.RSAEKTemplate, tpm2.ECCEKTemplate} {
		f.Add(tpm2.Marshal(template))
	}
	f.Add(tpm2.Marshal(akTemplate()))
	f.Add(tpm2.Marshal(counterPublic(0x01807664)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := exact[tpm2.TPMTPublic](b); err == nil {
			objectName(p)
			tpm2.Pub(*p)
			tpm2.ImportEncapsulationKey(p)
			matches(*p, akTemplate())
		}
		exact[tpm2.TPMSAttest](b)
		exact[tpm2.TPMTSignature](b)
		exact[tpm2.TPMSNVPublic](b)
		splitCertificates(b)
		e := endorsementKey{Public: b, Certificates: splitCertificates(b)}
		e.certificate()
		e.sha256()
	})
}

func FuzzParsePolicy(f *testing.F) {
	f.Add([]byte("endorsement: {keys: [" + other + "]}\npcrs: ['7:" + other + "']\nima: {allow: [{path: '*'}]}\n"))
	f.Add([]byte("kernel_command_line: {allow: ['.*'], forbid: ['init=']}\nsecure_boot: {required: true}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := ParsePolicy("p", b); err == nil {
			Appraise([]byte("{}"), p, Given{})
		}
	})
}

func FuzzEnrolment(f *testing.F) {
	m := booted(f, "uki-secureboot", tpmtest.Start(f))
	m.from.IMA = ""
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	a, err := NewAuthority(key, exampleOrg, time.Unix(1<<30, 0), time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	request, err := m.Request(f.Context(), exampleOrg, nil, m.from)
	if err != nil {
		f.Fatal(err)
	}
	boot, err := ApproveBootState(key, map[uint][]byte{7: make([]byte, 32)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(request)
	f.Add(boot)
	terms := Terms{Policy: policy(f, "endorsement: {keys: ["+m.EKSHA256()+"]}\nboot_state: any\n"), AnyNonce: true, Life: time.Hour, Now: time.Unix(1<<30, 0)}
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, c, r, err := a.Approve(b, terms); err == nil && (!m.NodeKey().Equal(c.PublicKey) || r.AKName != m.AKName()) {
			t.Errorf("approved AK %s", r.AKName)
		}
		parseApproval(b, &key.PublicKey)
		ParseEnrolment(b, m.NodeKey(), terms.Now)
	})
}

// A sealed blob comes from a file that others may have changed.
func FuzzBoundHeader(f *testing.F) {
	f.Add([]byte("\x02\x00\x31" + `{"authority":"","key":{"public":"","private":""}}`))
	f.Add([]byte{sealBoundVersion, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, text, err := readBoundHeader(b)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(b, text) || len(text) > 3+maxBoundHeader || len(h.Authority) > maxBoundHeader {
			t.Errorf("header of %d bytes, of %d", len(text), len(b))
		}
		if _, err := sealWith(make([]byte, sealKeyLen), "label", text, nil); err != nil {
			t.Error(err)
		}
	})
}
