package appraisal_test

import (
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/appraisal/bootlog"
	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

func TestMachineAsLearnedPasses(t *testing.T) {
	t.Parallel()
	m := booted(t, "uki-secureboot", tpmtest.Start(t))
	e, given := m.evidence(t)
	p := learned(t, e)
	r := appraisal.Appraise(e, p, given)
	if !r.Passed {
		t.Fatalf("%v", r)
	}
	if r.EKSHA256 != m.EKSHA256() || r.AKName != m.AKName() || !r.NodeKey().Equal(m.NodeKey()) || !r.SecureBoot {
		t.Errorf("result is about %+v", r)
	}
	want := []string{"node:hostname:vm-1", "tpm:ek:sha256:" + m.EKSHA256(), "tpm:pcr:7:" + r.PCRs[7], "tpm:secureboot:on"}
	for _, s := range want {
		if !slices.Contains(r.Selectors().Strings(), s) {
			t.Errorf("selectors %q lack %s", r.Selectors().Strings(), s)
		}
	}
	for _, rule := range []string{"endorsement", "activation", "PCR 0", "PCR 7", "event log", "secure boot", "kernel command line", "ima"} {
		if !slices.ContainsFunc(r.Rules, func(got appraisal.RuleResult) bool { return got.Rule == rule && got.Passed && got.Reason != "" }) {
			t.Errorf("no reason for rule %s in\n%v", rule, r)
		}
	}
	self, document, err := m.Appraise(t.Context(), p, m.from, &r.BootState)
	if err != nil {
		t.Fatal(err)
	}
	if !self.Passed || len(document) == 0 {
		t.Errorf("by itself: %v", self)
	}
	// Another boot state is noticed the next time.
	m.extend(t, 7, []byte("another key"))
	self, _, err = m.Appraise(t.Context(), p, m.from, &r.BootState)
	if err != nil {
		t.Fatal(err)
	}
	if self.Passed || self.Err() == nil || !strings.Contains(self.Err().Error(), "PCR 7") {
		t.Errorf("after PCR 7 changed: %v", self)
	}
	if got := self.Selectors(); len(got) != 0 {
		t.Errorf("a machine that does not pass has selectors %v", got)
	}
}

func TestPolicyThatNamesNothingPassesNothing(t *testing.T) {
	t.Parallel()
	m := booted(t, "uki-secureboot", tpmtest.Start(t))
	e, given := m.evidence(t)
	ek := "endorsement: {keys: [" + m.EKSHA256() + "]}\n"
	for _, tt := range []struct {
		name, policy string
		want         bool
	}{
		{"nothing at all", "", false},
		{"empty lists", "endorsement: {keys: [], roots: []}\npcrs: []\n", false},
		{"a boot state and no machine", "pcrs: ['7:" + quotedPCR(t, e, 7) + "']\n", false},
		{"a machine and no boot state", ek, false},
		{"a machine and any boot state, said", ek + "boot_state: any\n", true},
		{"a machine and empty rules", ek + "secure_boot: {}\nima: {allow: []}\nkernel_command_line: {}\n", false},
		{"a machine and its boot state", ek + "pcrs: ['7:" + quotedPCR(t, e, 7) + "']\n", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if r := appraisal.Appraise(e, policy(t, tt.policy), given); r.Passed != tt.want {
				t.Errorf("%v", r)
			}
		})
	}
	if r := appraisal.Appraise(e, appraisal.Policy{}, given); r.Passed {
		t.Errorf("the zero policy: %v", r)
	}
}

func TestEachRuleIsJudged(t *testing.T) {
	t.Parallel()
	secure := booted(t, "uki-secureboot", tpmtest.Start(t))
	insecure := booted(t, "kernel-no-secureboot", tpmtest.Start(t))
	snakeoil := authority(t, secure)
	for _, tt := range []struct {
		name     string
		on       *machine
		policy   string
		failing  string // rule, "" if the machine passes
		mentions string
	}{
		{"one of several PCR values", secure, "pcrs: ['4:" + other + "', '4:" + recordedPCR(t, 4) + "']", "", ""},
		{"another PCR value", secure, "pcrs: ['4:" + other + "']", "PCR 4", "none of the 1 accepted"},
		{"Secure Boot on", secure, "secure_boot: {required: true}", "", ""},
		{"Secure Boot with its key", secure, "secure_boot: {keys: [" + snakeoil + "]}", "", ""},
		{"Secure Boot with another key", secure, "secure_boot: {keys: [" + other + "]}", "secure boot", snakeoil},
		{"Secure Boot off", insecure, "secure_boot: {required: true}", "secure boot", "off"},
		{"Secure Boot off, keys named only", insecure, "secure_boot: {keys: [" + other + "]}", "secure boot", "off"},
		{"command line allowed", secure, "kernel_command_line: {allow: ['root=LABEL=vmroot rw .* quiet']}", "", ""},
		{"command line allowed in part only", secure, "kernel_command_line: {allow: ['root=LABEL=vmroot rw']}", "kernel command line", "not among"},
		{"command line allowed by alternatives that match in part", secure, "kernel_command_line: {allow: ['root=LABEL=vmroot|quiet']}", "kernel command line", "not among"},
		{"command line not forbidden", secure, "kernel_command_line: {forbid: ['init=']}", "", ""},
		{"command line measured where the policy says", secure, "kernel_command_line: {measured_into: pcr9, forbid: ['init=']}", "", ""},
		{"command line measured elsewhere", secure, "kernel_command_line: {measured_into: pcr12, forbid: ['init=']}", "kernel command line", "PCR 12"},
		{"command line forbidden", secure, "kernel_command_line: {forbid: ['console=']}", "kernel command line", "forbidden"},
		{"another command line than measured", insecure, "kernel_command_line: {allow: ['.*']}", "kernel command line", "not measured"},
		{"any file", secure, "ima: {allow: [{path: '*'}]}", "", ""},
		{"files of one directory only", secure, "ima: {allow: [{path: /usr/bin/*}]}", "ima", "boot_aggregate"},
		{"a file that ran and is forbidden", secure, "ima: {forbid: [{path: /usr/bin/sh}]}", "ima", "/usr/bin/sh"},
		{"a file that did not run and is forbidden", secure, "ima: {forbid: [{path: /usr/bin/evil}]}", "", ""},
		{"a digest that ran and is forbidden", secure, "ima: {forbid: [{path: '*', sha256: [d5de2143ccf806a575a8dce6e00f8bbd920a2a920c2b69246b55b95c5b63a2fb]}]}", "ima", "/usr/bin/sh"},
		{"another digest than allowed", secure, "ima: {allow: [{path: /usr/bin/sh, sha256: [" + other + "]}, {path: '*', sha256: [" + other + "]}]}", "ima", "not among"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, given := tt.on.evidence(t)
			r := appraisal.Appraise(e, policy(t, "endorsement: {keys: ["+tt.on.EKSHA256()+"]}\n"+tt.policy+"\n"), given)
			if (tt.failing == "") != r.Passed {
				t.Fatalf("%v", r)
			}
			for _, rule := range r.Rules {
				if rule.Passed == (rule.Rule == tt.failing) {
					t.Errorf("rule %s: passed %v, %s", rule.Rule, rule.Passed, rule.Reason)
				}
				if rule.Rule == tt.failing && !strings.Contains(rule.Reason, tt.mentions) {
					t.Errorf("reason %q does not mention %q", rule.Reason, tt.mentions)
				}
			}
		})
	}
}

// An attacker owns the host and the network between, but not the TPM.
func TestForgedEvidenceIsRefused(t *testing.T) {
	t.Parallel()
	m := booted(t, "uki-secureboot", tpmtest.Start(t))
	other := booted(t, "uki-secureboot", tpmtest.StartManufactured(t))
	e, given := m.evidence(t)
	othersEvidence, othersGiven := other.evidence(t)
	var good, others appraisal.Evidence
	for b, v := range map[*appraisal.Evidence][]byte{&good: e, &others: othersEvidence} {
		if err := json.Unmarshal(v, b); err != nil {
			t.Fatal(err)
		}
	}
	p := learned(t, e)
	for _, tt := range []struct {
		name  string
		forge func(*appraisal.Evidence, *appraisal.Given)
		rule  string
		want  error
	}{
		{"another nonce", func(e *appraisal.Evidence, g *appraisal.Given) { g.Nonce = someBytes(32) }, "nonce", appraisal.ErrNonce},
		{"no nonce", func(e *appraisal.Evidence, g *appraisal.Given) { g.Nonce = nil }, "nonce", appraisal.ErrNonce},
		{"a nonce put in", func(e *appraisal.Evidence, g *appraisal.Given) {
			g.Nonce = someBytes(32)
			e.Nonce = hex.EncodeToString(g.Nonce)
		}, "quote", appraisal.ErrNonce},
		{"a cut nonce", func(e *appraisal.Evidence, g *appraisal.Given) {
			g.Nonce = g.Nonce[:16]
			e.Nonce = hex.EncodeToString(g.Nonce)
		}, "quote", appraisal.ErrNonce},
		{"another host name", func(e *appraisal.Evidence, g *appraisal.Given) { e.Host.Hostname = "vm-2" }, "quote", appraisal.ErrNonce},
		{"another command line", func(e *appraisal.Evidence, g *appraisal.Given) { e.Host.CommandLine = "quiet" }, "quote", appraisal.ErrNonce},
		{"another machine's quote", func(e *appraisal.Evidence, g *appraisal.Given) { e.Quote = others.Quote }, "quote", appraisal.ErrSignature},
		{"another machine's AK", func(e *appraisal.Evidence, g *appraisal.Given) { e.AK = others.AK }, "quote", appraisal.ErrSignature},
		{"another machine's node key", func(e *appraisal.Evidence, g *appraisal.Given) { e.NodeKey = others.NodeKey }, "quote", appraisal.ErrSignature},
		{"another machine's counter", func(e *appraisal.Evidence, g *appraisal.Given) { e.Counter = others.Counter }, "quote", appraisal.ErrSignature},
		{"an AK that is not restricted", func(e *appraisal.Evidence, g *appraisal.Given) { e.AK.Public = good.NodeKey.Public }, "quote", appraisal.ErrAK},
		{"a quote of fewer PCRs", func(e *appraisal.Evidence, g *appraisal.Given) {
			e.Quote = m.quoteOf(t, tpm2.TPMAlgSHA256, appraisal.BootPCRs, appraisal.AboutEvidence(g.Nonce, e.Host))
		}, "quote", appraisal.ErrSelection},
		{"the SHA-1 bank as SHA-256", func(e *appraisal.Evidence, g *appraisal.Given) {
			e.Quote = m.quoteOf(t, tpm2.TPMAlgSHA1, appraisal.AllPCRs, appraisal.AboutEvidence(g.Nonce, e.Host))
		}, "quote", appraisal.ErrSelection},
		{"the SHA-1 bank where SHA-256 is there", func(e *appraisal.Evidence, g *appraisal.Given) {
			e.Bank = appraisal.BankSHA1
			e.Quote = m.quoteOf(t, tpm2.TPMAlgSHA1, appraisal.AllPCRs, appraisal.AboutEvidence(g.Nonce, e.Host))
		}, "quote", nil},
		{"a good machine's PCR values", func(e *appraisal.Evidence, g *appraisal.Given) { e.Quote.PCRs[7] = make([]byte, 32) }, "quote", appraisal.ErrPCRs},
		{"another machine's endorsement key and certificate (the cuckoo)", func(e *appraisal.Evidence, g *appraisal.Given) { e.EK = others.EK }, "endorsement", nil},
		{"the other machine's evidence with this one's endorsement key", func(e *appraisal.Evidence, g *appraisal.Given) {
			ek := e.EK
			*e, g.Nonce = clone(t, others), othersGiven.Nonce
			e.EK = ek
		}, "activation", appraisal.ErrActivation},
		{"no activation", func(e *appraisal.Evidence, g *appraisal.Given) { g.Activation = nil }, "activation", appraisal.ErrActivation},
		{"an activation of another endorsement key", func(e *appraisal.Evidence, g *appraisal.Given) {
			g.Activation = &appraisal.Activation{EKSHA256: other.EKSHA256(), AKName: m.AKName()}
		}, "activation", appraisal.ErrActivation},
		{"another machine's activation", func(e *appraisal.Evidence, g *appraisal.Given) { g.Activation = othersGiven.Activation }, "activation", appraisal.ErrActivation},
		{"no event log", func(e *appraisal.Evidence, g *appraisal.Given) { e.EventLog = nil }, "event log", bootlog.ErrLog},
		{"another boot's event log", func(e *appraisal.Evidence, g *appraisal.Given) {
			e.EventLog = readFile(t, "testdata/kernel-no-secureboot/binary_bios_measurements")
		}, "event log", bootlog.ErrLog},
		{"no IMA list", func(e *appraisal.Evidence, g *appraisal.Given) { e.IMA = nil }, "ima", appraisal.ErrIMA},
		{"another boot's IMA list", func(e *appraisal.Evidence, g *appraisal.Given) {
			e.IMA = readFile(t, "testdata/kernel-no-secureboot/ima_binary_runtime_measurements")
		}, "ima", appraisal.ErrIMA},
		{"a state from before a reboot", func(e *appraisal.Evidence, g *appraisal.Given) {
			g.Previous = &appraisal.BootState{Resets: resets(t, m) + 1}
		}, "quote", appraisal.ErrNonce},
		{"a clock that went back", func(e *appraisal.Evidence, g *appraisal.Given) {
			g.Previous = &appraisal.BootState{Resets: resets(t, m), Clock: 1000 * time.Hour}
		}, "quote", appraisal.ErrNonce},
	} {
		t.Run(tt.name, func(t *testing.T) {
			forged, g := clone(t, good), given
			tt.forge(&forged, &g)
			refused(t, appraisal.Appraise(encode(t, forged), p, g), tt.rule, tt.want)
		})
	}
	for name, text := range map[string]string{
		"nothing": "", "an unknown field": `{"extra":1,` + string(e[1:]), "an unknown version": `{"version":2}`,
		"two documents": string(e) + "{}",
		"no fields":     `{"version":1}`, "deep": strings.Repeat(`{"quote":`, 100_000),
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, appraisal.Appraise([]byte(text), p, given), "evidence", nil)
		})
	}
}

func refused(t *testing.T, r appraisal.Result, rule string, want error) {
	t.Helper()
	if r.Passed || r.Err() == nil {
		t.Fatalf("accepted: %v", r)
	}
	if r.NodeKey() != nil && (rule == "evidence" || rule == "nonce" || rule == "quote") {
		t.Error("the result has a node key that nothing certified")
	}
	for _, got := range r.Rules {
		if got.Rule == rule && !got.Passed && (want == nil || strings.Contains(got.Reason, want.Error())) {
			return
		}
	}
	t.Errorf("rule %s does not fail with %v:\n%v", rule, want, r)
}

func TestEvidenceIsBounded(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	n := load(t, tpm, store(t))
	long := file(t, "")
	if err := os.Truncate(long, 100<<20); err != nil {
		t.Fatal(err)
	}
	for name, from := range map[string]node.Sources{"event log": {EventLog: long}, "IMA list": {IMA: long}, "command line": {CommandLine: long}} {
		if _, err := n.Evidence(t.Context(), someBytes(32), from); err == nil || !strings.Contains(err.Error(), "more than") {
			t.Errorf("%s of 100 MiB: %v", name, err)
		}
	}
	for _, length := range []int{0, 15, 65} {
		if _, err := n.Evidence(t.Context(), someBytes(length), node.Sources{}); err == nil {
			t.Errorf("nonce of %d bytes accepted", length)
		}
	}
	largest := appraisal.Evidence{
		Bank: appraisal.BankSHA256, EventLog: make([]byte, appraisal.MaxEventLogLen),
		IMA: make([]byte, appraisal.MaxIMALen), UserspaceLog: make([]byte, appraisal.MaxUserspaceLogLen),
	}
	if b, err := largest.Encode(); err != nil || len(b) > appraisal.MaxEvidenceLen-2<<20 {
		t.Errorf("the largest logs make evidence of %d bytes, %v, which leaves too little for the rest", len(b), err)
	}
	r := appraisal.Appraise(make([]byte, appraisal.MaxEvidenceLen+1), appraisal.Policy{}, appraisal.Given{})
	refused(t, r, "evidence", nil)
}

func TestMachineWithSHA1Only(t *testing.T) {
	t.Parallel()
	real := tpmtest.Start(t)
	tool(t, real, "tpm2_pcrallocate", "sha1:all+sha256:none")
	real.Restart()
	tpm := reopen(t, real.Address)
	n := load(t, tpm, store(t))
	m := &machine{Node: n, real: real}
	e, given := m.evidence(t)
	base := "endorsement: {keys: [" + n.EKSHA256() + "]}\nboot_state: any\n"
	refused(t, appraisal.Appraise(e, policy(t, base), given), "quote", nil)
	if r := appraisal.Appraise(e, policy(t, base+"allow_sha1: true\n"), given); !r.Passed || r.Bank != appraisal.BankSHA1 || len(r.Selectors().Strings()) != 1 {
		t.Errorf("%v with selectors %v", r, r.Selectors())
	}
	if _, err := n.Quote(t.Context(), [32]byte{}); err == nil || !strings.Contains(err.Error(), "tpm2_pcrallocate") {
		t.Errorf("Quote = %v, which does not name the way out", err)
	}
}

// other is a digest of nothing that is around.
const other = "abababababababababababababababababababababababababababababababab"

func policy(t testing.TB, text string) appraisal.Policy {
	t.Helper()
	p, err := appraisal.ParsePolicy("policy.yaml", []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return p
}

func learned(t testing.TB, e []byte) appraisal.Policy {
	t.Helper()
	text, err := appraisal.LearnPolicy(e)
	if err != nil {
		t.Fatal(err)
	}
	return policy(t, string(text))
}

func yamlPEM(der []byte) string {
	text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return "    - |\n      " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n      ") + "\n"
}

func quotedPCR(t *testing.T, e []byte, pcr uint) string {
	t.Helper()
	parsed, err := appraisal.ParseEvidence(e)
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(parsed.Quote.PCRs[pcr])
}

func recordedPCR(t *testing.T, pcr uint) string {
	t.Helper()
	return fmt.Sprintf("%x", []byte(recordedPCRs(t, "uki-secureboot")[pcr]))
}

func resets(t *testing.T, m *machine) uint32 {
	t.Helper()
	q, err := m.Quote(t.Context(), [32]byte{})
	if err != nil {
		t.Fatal(err)
	}
	return q.Resets
}

// authority returns the digest of the certificate that the boot was verified
// with.
func authority(t *testing.T, m *machine) string {
	t.Helper()
	e, _ := m.evidence(t)
	all, err := appraisal.Authorities(e)
	if err != nil || len(all) != 1 {
		t.Fatalf("authorities %v, %v; want one", all, err)
	}
	return all[0]
}
