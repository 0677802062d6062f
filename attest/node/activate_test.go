package node

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

// withEndorsementKey equips the TPM so that its endorsement key is of one kind.
func withEndorsementKey(t *testing.T, kind string) *machine {
	t.Helper()
	tpm, real := open(t)
	switch kind {
	case "RSA-2048":
	case "P-384":
		undefine(t, real, 0x01c00002)
	case "P-256", "RSA-2048 high", "P-256 high": // no certificate and no key kept loaded
		undefine(t, real, 0x01c00002)
		undefine(t, real, 0x01c00016)
	}
	n := load(t, tpm, store(t))
	if i := map[string]int{"P-256": 1, "RSA-2048 high": 2, "P-256 high": 3}[kind]; i > 0 {
		err := tpm.do(t.Context(), "making an EK", creationLimit, func(tr transport.TPM) error {
			public, err := deriveEndorsementKey(tr, ekTemplates()[i])
			if err == nil {
				n.keys.EK = appraisal.EndorsementKey{Public: tpm2.Marshal(public)}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return &machine{Node: n, real: real}
}

func TestActivationWithEachKindOfEndorsementKey(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"RSA-2048", "P-256", "P-384", "RSA-2048 high", "P-256 high"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			m := withEndorsementKey(t, kind)
			_, given := m.evidence(t)
			if want := (appraisal.Activation{EKSHA256: m.EKSHA256(), AKName: m.AKName()}); *given.Activation != want {
				t.Errorf("activation is about %+v, want %+v", *given.Activation, want)
			}
			if left := m.real.Handles(); len(left) > 0 {
				t.Errorf("handles %x are left", left)
			}
		})
	}
}

// The cuckoo: a host without a good TPM presents another machine's endorsement
// key, and may even have that machine's TPM answer for it.
func TestChallengeIsAnsweredByTheRightTPMOnly(t *testing.T) {
	t.Parallel()
	victim := &machine{}
	tpm, _ := open(t)
	victim.Node = load(t, tpm, store(t))
	cuckoo := &machine{Node: load(t, reopen(t, tpmtest.StartManufactured(t).Address), store(t))}

	e, err := cuckoo.Evidence(t.Context(), someBytes(32), Sources{})
	if err != nil {
		t.Fatal(err)
	}
	var forged appraisal.Evidence
	if err := json.Unmarshal(e, &forged); err != nil {
		t.Fatal(err)
	}
	forged.EK = victim.keys.EK
	challenge, kept, err := appraisal.Challenge(encode(t, forged))
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]*machine{"the cuckoo": cuckoo, "the victim": victim} {
		if _, err := m.Activate(t.Context(), challenge); err == nil {
			t.Errorf("%s answered", name)
		}
	}
	// Not even if vouchd's own checks are left out.
	var c appraisal.ActivationChallenge
	if err := json.Unmarshal(challenge, &c); err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]*machine{"the cuckoo": cuckoo, "the victim": victim} {
		err := m.tpm.do(t.Context(), "answering", operationLimit, func(tr transport.TPM) error {
			_, err := m.activate(tr, c)
			return err
		})
		if err == nil {
			t.Errorf("%s's TPM answered", name)
		}
	}
	answer, err := appraisal.AnswerChallenge(someBytes(32), victim.EKSHA256(), cuckoo.AKName())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := appraisal.VerifyActivation(kept, answer); !errors.Is(err, appraisal.ErrActivation) {
		t.Errorf("a guessed answer: %v, want %v", err, appraisal.ErrActivation)
	}
}

func TestActivationDocumentsAreRefused(t *testing.T) {
	t.Parallel()
	m := withEndorsementKey(t, "RSA-2048")
	e, err := m.Evidence(t.Context(), someBytes(32), Sources{})
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
	_, otherKept, err := appraisal.Challenge(e)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := appraisal.VerifyActivation(otherKept, answer); !errors.Is(err, appraisal.ErrActivation) {
		t.Errorf("an answer to another challenge: %v, want %v", err, appraisal.ErrActivation)
	}
	for _, text := range []string{"", "{}", "[]", `{"version":2}`, `{"version":1,"extra":1}`} {
		if _, err := m.Activate(t.Context(), []byte(text)); err == nil {
			t.Errorf("challenge %q was answered", text)
		}
		if _, err := appraisal.VerifyActivation(kept, []byte(text)); err == nil {
			t.Errorf("answer %q was accepted", text)
		}
		if _, err := appraisal.VerifyActivation([]byte(text), answer); err == nil {
			t.Errorf("kept %q was accepted", text)
		}
		if _, _, err := appraisal.Challenge([]byte(text)); err == nil {
			t.Errorf("evidence %q was challenged", text)
		}
	}
	for name, change := range map[string]func(*appraisal.ActivationChallenge){
		"a changed credential": func(c *appraisal.ActivationChallenge) { c.Credential = flip(c.Credential, 40) },
		"a changed secret":     func(c *appraisal.ActivationChallenge) { c.Secret = flip(c.Secret, 40) },
		"no secret":            func(c *appraisal.ActivationChallenge) { c.Secret = nil },
		"another AK":           func(c *appraisal.ActivationChallenge) { c.AKName = "00" },
	} {
		var c appraisal.ActivationChallenge
		if err := json.Unmarshal(challenge, &c); err != nil {
			t.Fatal(err)
		}
		change(&c)
		if _, err := m.Activate(t.Context(), encode(t, c)); err == nil {
			t.Errorf("%s: answered", name)
		}
	}
	var forged appraisal.Evidence
	if err := json.Unmarshal(e, &forged); err != nil {
		t.Fatal(err)
	}
	forged.AK.Public = m.keys.Node.Public
	if _, _, err := appraisal.Challenge(encode(t, forged)); !errors.Is(err, appraisal.ErrAK) {
		t.Errorf("challenging a key that signs anything: %v, want %v", err, appraisal.ErrAK)
	}
}
