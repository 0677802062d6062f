package appraisal_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"testing"
	"time"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

// The fuzz targets feed every parser of what comes from outside. They look for
// panics, hangs and, where it can be said, for something accepted that was not
// made by the seeds' machine.

func FuzzVerifyStatement(f *testing.F) {
	tpm, err := node.Open(f.Context(), tpmtest.Start(f).Address)
	if err != nil {
		f.Fatal(err)
	}
	defer tpm.Close()
	n := load(f, tpm, store(f))
	logKey := newLogKey(f)
	s, err := n.Statement(f.Context(), logKey, nil)
	if err != nil {
		f.Fatal(err)
	}
	anchor, err := n.Anchor(f.Context(), [32]byte{})
	if err != nil {
		f.Fatal(err)
	}
	v, err := appraisal.VerifyStatement(s, logKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s)
	f.Add(anchor)
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := appraisal.VerifyStatement(b, logKey); err == nil && got.AKName != v.AKName {
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
	var small appraisal.Evidence
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
		if r := appraisal.Appraise(b, p, given); r.Passed && r.AKName != m.AKName() {
			t.Errorf("accepted evidence of AK %s", r.AKName)
		}
		appraisal.Challenge(b)
		appraisal.LearnPolicy(b)
	})
}

func FuzzEnrolment(f *testing.F) {
	m := booted(f, "uki-secureboot", tpmtest.Start(f))
	m.from.IMA = ""
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	a, err := appraisal.NewAuthority(key, exampleOrg, time.Unix(1<<30, 0), time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	request, err := m.Request(f.Context(), exampleOrg, nil, m.from)
	if err != nil {
		f.Fatal(err)
	}
	boot, err := appraisal.ApproveBootState(key, map[uint][]byte{7: make([]byte, 32)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(request)
	f.Add(boot)
	terms := appraisal.Terms{Policy: policy(f, "endorsement: {keys: ["+m.EKSHA256()+"]}\nboot_state: any\n"), AnyNonce: true, Life: time.Hour, Now: time.Unix(1<<30, 0)}
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, c, r, err := a.Approve(b, terms); err == nil && (!m.NodeKey().Equal(c.PublicKey) || r.AKName != m.AKName()) {
			t.Errorf("approved AK %s", r.AKName)
		}
		appraisal.ParseBootApproval(b, &key.PublicKey)
		appraisal.ParseEnrolment(b, m.NodeKey(), terms.Now)
	})
}
