package appraisal

import (
	"testing"

	"github.com/google/go-tpm/tpm2"
)

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
	f.Add(tpm2.Marshal(AKTemplate()))
	f.Add(tpm2.Marshal(CounterPublic(0x01807664)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := Structure[tpm2.TPMTPublic](b); err == nil {
			ObjectName(p)
			tpm2.Pub(*p)
			tpm2.ImportEncapsulationKey(p)
			Matches(*p, AKTemplate())
		}
		Structure[tpm2.TPMSAttest](b)
		Structure[tpm2.TPMTSignature](b)
		Structure[tpm2.TPMSNVPublic](b)
		SplitCertificates(b)
		e := EndorsementKey{Public: b, Certificates: SplitCertificates(b)}
		e.Certificate()
		e.SHA256()
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
