package appraisal_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

// systemd 259 and later measure into PCR 9, so that the firmware's log alone explains
// no command line.
func TestMachineWhoseSystemdMeasuresIntoPCR9Passes(t *testing.T) {
	t.Parallel()
	m := booted(t, "uki-secureboot", tpmtest.Start(t))
	const nvpcr = "nvpcr-init:hardware:0x1d10200:000bff27bc66b6eda11bccd3a0ca07664ae4c360bcc3d7ef019d0b19cb5fa4067541"
	m.extend(t, 9, []byte(nvpcr))
	m.from.UserspaceLog = file(t, record(11, "enter-initrd")+record(9, nvpcr))
	e, given := m.evidence(t)
	p := learned(t, e)
	if !strings.Contains(learnedText(t, e), "measured_into: pcr9\n") {
		t.Errorf("the learned policy does not say where the command line is measured:\n%s", learnedText(t, e))
	}
	r := appraisal.Appraise(e, p, given)
	if !r.Passed {
		t.Errorf("%v", r)
	}
	if self, _, err := m.Appraise(t.Context(), p, m.from, &r.BootState); err != nil || !self.Passed {
		t.Errorf("by itself: %v, %v", self, err)
	}
	// Another measurement, of which the log has nothing.
	m.extend(t, 9, []byte("something else"))
	self, _, err := m.Appraise(t.Context(), p, m.from, nil)
	if err != nil || self.Passed || !strings.Contains(self.Err().Error(), "kernel command line: ") ||
		!strings.Contains(self.Err().Error(), "systemd's log after them, up to record 2, do not add up to its value") {
		t.Errorf("with a measurement that is in no log: %v, %v", self, err)
	}
	// Without the log there is no rule to learn, and the policy says why.
	if err := os.Remove(m.from.UserspaceLog); err != nil {
		t.Fatal(err)
	}
	e, _ = m.evidence(t)
	if text := learnedText(t, e); !strings.Contains(text, "# No kernel_command_line: ") || !strings.Contains(text, "PCR 9") {
		t.Errorf("the learned policy does not say what it leaves out:\n%s", text)
	}
}

// A learned policy says of each rule that it does not state why.
func TestLearnedPolicyNamesTheRulesThatItLeavesOut(t *testing.T) {
	t.Parallel()
	m := booted(t, "kernel-no-secureboot", tpmtest.Start(t))
	m.from.IMA = ""
	e, _ := m.evidence(t)
	text := learnedText(t, e)
	for _, want := range []string{"# No secure_boot: \"it is off\"", "# No kernel_command_line: \"", "# No ima: \"the evidence has no list of measured files\""} {
		if !strings.Contains(text, want) {
			t.Errorf("nothing says %q in\n%s", want, text)
		}
	}
	m.from.EventLog = ""
	e, _ = m.evidence(t)
	text = learnedText(t, e)
	for _, want := range []string{"# No secure_boot: \"the event log", "# No kernel_command_line: \"the event log"} {
		if !strings.Contains(text, want) {
			t.Errorf("nothing says %q in\n%s", want, text)
		}
	}
	learned(t, e) // which is a policy still
}

func learnedText(t *testing.T, evidence []byte) string {
	t.Helper()
	b, err := appraisal.LearnPolicy(evidence)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// record is a record as systemd writes it.
func record(pcr int, text string) string {
	return fmt.Sprintf("\x1e"+`{"pcr":%d,"digests":[{"hashAlg":"sha256","digest":"%x"}],"content_type":"systemd",`+
		`"content":{"string":%q,"bootId":"2a15f9dd3f8a4be7a9c1f0e5d2b7a613","timestamp":5263910}}`+"\n", pcr, sha256.Sum256([]byte(text)), text)
}
