package node

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

func TestStatementAndAnchorsVerify(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	n := load(t, tpm, store(t))
	logKey := newLogKey(t)
	s, err := n.Statement(t.Context(), logKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(s) > appraisal.MaxStatementLen {
		t.Errorf("statement of %d bytes, want at most %d", len(s), appraisal.MaxStatementLen)
	}
	v, err := appraisal.VerifyStatement(s, logKey)
	if err != nil {
		t.Fatal(err)
	}
	if v.EKSHA256 != n.EKSHA256() || v.AKName != n.AKName() || !v.NodeKey.Equal(n.NodeKey()) {
		t.Errorf("statement says %+v, the node %s, %s, %v", v, n.EKSHA256(), n.AKName(), n.NodeKey())
	}

	var facts []appraisal.AnchorFacts
	for i := range 4 {
		if i == 2 {
			real.Restart()
		}
		digest := sha256.Sum256([]byte{byte(i)})
		a, err := n.Anchor(t.Context(), digest)
		if err != nil {
			t.Fatal(err)
		}
		f, err := v.Anchor(a, digest)
		if err != nil {
			t.Fatal(err)
		}
		facts = append(facts, f)
	}
	for i, f := range facts {
		if want := v.Counter + uint64(i) + 1; f.Counter != want {
			t.Errorf("anchor %d counts %d, want %d", i, f.Counter, want)
		}
		if f.PCRDigest != v.PCRDigest {
			t.Errorf("anchor %d has PCR digest %s, the statement %s", i, f.PCRDigest, v.PCRDigest)
		}
	}
	if facts[0].Resets != facts[1].Resets || facts[2].Resets != facts[1].Resets+1 || facts[3].Resets != facts[2].Resets {
		t.Errorf("resets %d, %d, reboot, %d, %d", facts[0].Resets, facts[1].Resets, facts[2].Resets, facts[3].Resets)
	}
	if facts[1].Clock < facts[0].Clock {
		t.Errorf("the clock went from %v to %v", facts[0].Clock, facts[1].Clock)
	}

	real.Extend(7, "another Secure Boot key")
	a, err := n.Anchor(t.Context(), [32]byte{9})
	if err != nil {
		t.Fatal(err)
	}
	f, err := v.Anchor(a, [32]byte{9})
	if err != nil {
		t.Fatal(err)
	}
	if f.PCRDigest == v.PCRDigest {
		t.Error("PCR 7 changed and the PCR digest did not")
	}
}

func TestQuotesVerify(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	n := load(t, tpm, store(t))
	real.Extend(4, "a boot loader")
	v := statementOf(t, n)
	about := sha256.Sum256([]byte("an issuing CA"))
	q, err := n.Quote(t.Context(), about)
	if err != nil {
		t.Fatal(err)
	}
	state, pcrs, err := v.Quote(q.Encoding, about)
	if err != nil {
		t.Fatal(err)
	}
	if state != q.BootState {
		t.Errorf("quote says %+v, verified %+v", q.BootState, state)
	}
	extended := sha256.Sum256([]byte("a boot loader"))
	want := sha256.Sum256(append(make([]byte, 32), extended[:]...))
	if !bytes.Equal(pcrs[4], want[:]) {
		t.Errorf("PCR 4 is %x, want %x", pcrs[4], want)
	}
	if _, _, err := v.Quote(q.Encoding, sha256.Sum256([]byte("another CA"))); !errors.Is(err, appraisal.ErrNonce) {
		t.Errorf("about something else: %v, want %v", err, appraisal.ErrNonce)
	}
}

// Each forgery starts from a good statement and good answers of a real TPM, as
// an attacker who owns the host could.
func TestForgedStatementsAreRefused(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	n := load(t, tpm, store(t))
	other := load(t, reopen(t, tpmtest.StartManufactured(t).Address), store(t))
	logKey := newLogKey(t)
	good := decodeStatement(t, n, logKey)
	others := decodeStatement(t, other, logKey)
	about := appraisal.AboutLogKey(logKey)

	for _, tt := range []struct {
		name  string
		forge func(*testing.T, *appraisal.Statement)
		want  error
	}{
		{"another machine's quote", func(t *testing.T, s *appraisal.Statement) { s.Quote = others.Quote }, appraisal.ErrSignature},
		{"another machine's node key", func(t *testing.T, s *appraisal.Statement) { s.NodeKey = others.NodeKey }, appraisal.ErrSignature},
		{"another machine's counter", func(t *testing.T, s *appraisal.Statement) { s.Counter = others.Counter }, appraisal.ErrSignature},
		{"another machine's creation", func(t *testing.T, s *appraisal.Statement) { s.AK.Created = others.AK.Created }, appraisal.ErrSignature},
		{"another machine's endorsement certificate", func(t *testing.T, s *appraisal.Statement) { s.EK.Certificates = others.EK.Certificates }, appraisal.ErrEK},
		{"a quote for another log", func(t *testing.T, s *appraisal.Statement) { s.Quote = decodeStatement(t, n, newLogKey(t)).Quote }, appraisal.ErrNonce},
		{"a counter for another log", func(t *testing.T, s *appraisal.Statement) {
			s.Counter.Signed = decodeStatement(t, n, newLogKey(t)).Counter.Signed
		}, appraisal.ErrNonce},
		{"a quote of no PCRs", func(t *testing.T, s *appraisal.Statement) {
			s.Quote = quoteOf(t, n, tpm2.TPMAlgSHA256, nil, about)
		}, appraisal.ErrSelection},
		{"a quote of other PCRs", func(t *testing.T, s *appraisal.Statement) {
			s.Quote = quoteOf(t, n, tpm2.TPMAlgSHA256, []uint{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 16}, about)
		}, appraisal.ErrSelection},
		{"a quote of more PCRs", func(t *testing.T, s *appraisal.Statement) {
			s.Quote = quoteOf(t, n, tpm2.TPMAlgSHA256, append([]uint{16}, appraisal.BootPCRs...), about)
		}, appraisal.ErrSelection},
		{"a quote of the SHA-1 bank", func(t *testing.T, s *appraisal.Statement) {
			s.Quote = quoteOf(t, n, tpm2.TPMAlgSHA1, appraisal.BootPCRs, about)
		}, appraisal.ErrSelection},
		{"PCR values that were not quoted", func(t *testing.T, s *appraisal.Statement) { s.Quote.PCRs[7] = make([]byte, 32); s.Quote.PCRs[7][0] = 1 }, appraisal.ErrPCRs},
		{"PCR values split elsewhere", func(t *testing.T, s *appraisal.Statement) {
			s.Quote.PCRs[0] = append(s.Quote.PCRs[0], s.Quote.PCRs[1][0])
			s.Quote.PCRs[1] = s.Quote.PCRs[1][1:]
		}, appraisal.ErrPCRs},
		{"a value for a PCR that was not quoted", func(t *testing.T, s *appraisal.Statement) { s.Quote.PCRs[10] = make([]byte, 32) }, appraisal.ErrPCRs},
		{"a missing PCR value", func(t *testing.T, s *appraisal.Statement) { delete(s.Quote.PCRs, 15) }, appraisal.ErrPCRs},
		{"a certification in place of the quote", func(t *testing.T, s *appraisal.Statement) { s.Quote.Signed = s.NodeKey.Signed }, appraisal.ErrType},
		{"a quote in place of the certification", func(t *testing.T, s *appraisal.Statement) { s.NodeKey.Signed = s.Quote.Signed }, appraisal.ErrType},
		{"a quote in place of the counter", func(t *testing.T, s *appraisal.Statement) { s.Counter.Signed = s.Quote.Signed }, appraisal.ErrType},
		{"a changed byte in the quote", func(t *testing.T, s *appraisal.Statement) { s.Quote.Attested = flip(s.Quote.Attested, 60) }, appraisal.ErrSignature},
		{"a node key that was not certified", func(t *testing.T, s *appraisal.Statement) {
			s.NodeKey.Public = softKey(t, appraisal.SigningTemplate()).Public
		}, appraisal.ErrKey},
		{"a key certified for another purpose", func(t *testing.T, s *appraisal.Statement) {
			k, err := n.Key(t.Context(), "jwt")
			if err != nil {
				t.Fatal(err)
			}
			b := k.(*Key).blob
			s.NodeKey = appraisal.CertifiedKey{Public: b.Public, Signed: certified(t, n, n.keys.AK, b, appraisal.KeyPurpose("jwt"))}
		}, appraisal.ErrNonce},
		{"an AK that was made elsewhere and imported", func(t *testing.T, s *appraisal.Statement) {
			template := appraisal.AKTemplate()
			template.ObjectAttributes.SensitiveDataOrigin = false
			s.AK.Public = softKey(t, template).Public
		}, appraisal.ErrAK},
		{"an AK that is not restricted", func(t *testing.T, s *appraisal.Statement) { s.AK.Public = n.keys.Node.Public }, appraisal.ErrAK},
		{"an ordinary NV index for the counter", func(t *testing.T, s *appraisal.Statement) {
			p := appraisal.CounterPublic(n.keys.Counter.Index)
			p.Attributes.NT = tpm2.TPMNTOrdinary
			s.Counter.Public = tpm2.Marshal(p)
		}, appraisal.ErrCounter},
		{"an ordinary NV index, certified", func(t *testing.T, s *appraisal.Statement) {
			p := appraisal.CounterPublic(n.keys.Counter.Index)
			p.Attributes.NT = tpm2.TPMNTOrdinary
			s.Counter = appraisal.CertifiedPublic{Public: tpm2.Marshal(p), Signed: ordinaryIndex(t, n, real, about)}
		}, appraisal.ErrCounter},
		{"a certified node key that may leave the TPM", func(t *testing.T, s *appraisal.Statement) {
			template := appraisal.SigningTemplate()
			template.ObjectAttributes.FixedTPM, template.ObjectAttributes.FixedParent = false, false
			b := created(t, n, template)
			s.NodeKey = appraisal.CertifiedKey{Public: b.Public, Signed: certified(t, n, n.keys.AK, b, appraisal.KeyPurpose("node"))}
		}, appraisal.ErrKey},
		{"a counter the owner may write", func(t *testing.T, s *appraisal.Statement) {
			p := appraisal.CounterPublic(n.keys.Counter.Index)
			p.Attributes.OwnerWrite = true
			s.Counter.Public = tpm2.Marshal(p)
		}, appraisal.ErrCounter},
		{"another index than the certified one", func(t *testing.T, s *appraisal.Statement) {
			s.Counter.Public = tpm2.Marshal(appraisal.CounterPublic(n.keys.Counter.Index + 1))
		}, appraisal.ErrCounter},
		{"a creation of another key", func(t *testing.T, s *appraisal.Statement) { s.AK.Created.Data = flip(s.AK.Created.Data, 3) }, appraisal.ErrKey},
		{"an unknown version", func(t *testing.T, s *appraisal.Statement) { s.Version = 2 }, nil},
		{"no version", func(t *testing.T, s *appraisal.Statement) { s.Version = 0 }, nil},
		{"no endorsement key", func(t *testing.T, s *appraisal.Statement) { s.EK = appraisal.EndorsementKey{} }, nil},
		{"bytes after a structure", func(t *testing.T, s *appraisal.Statement) { s.AK.Public = append(s.AK.Public, 0) }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := clone(t, good)
			tt.forge(t, &s)
			_, err := appraisal.VerifyStatement(encode(t, s), logKey)
			if err == nil {
				t.Fatal("the forgery was accepted")
			}
			if tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("VerifyStatement = %v, want %v", err, tt.want)
			}
		})
	}
	t.Run("the log key of another log", func(t *testing.T) {
		if _, err := appraisal.VerifyStatement(encode(t, good), newLogKey(t)); !errors.Is(err, appraisal.ErrNonce) {
			t.Errorf("VerifyStatement = %v, want %v", err, appraisal.ErrNonce)
		}
	})
	for name, text := range map[string]string{
		"nothing": "", "an array": "[]", "an unknown field": `{"extra":1,` + string(encode(t, good)[1:]),
		"two documents": string(encode(t, good)) + "{}", "too long": string(make([]byte, appraisal.MaxStatementLen+1)),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := appraisal.VerifyStatement([]byte(text), logKey); err == nil {
				t.Error("it was accepted")
			}
		})
	}
}

// The TPM itself refuses to let the AK sign a structure that claims to be its.
func TestTPMRefusesToSignForgedStructures(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	n := load(t, tpm, store(t))
	forged := decodeStatement(t, n, newLogKey(t)).Quote.Attested
	digest := sha256.Sum256(forged)
	err := tpm.do(t.Context(), "forging", operationLimit, func(tr transport.TPM) error {
		ak, err := n.load(tr, n.keys.AK)
		if err != nil {
			t.Fatal(err)
		}
		_, err = tpm2.Sign{
			KeyHandle:  withAuth(ak, tpm2.PasswordAuth(nil)),
			Digest:     tpm2.TPM2BDigest{Buffer: digest[:]},
			InScheme:   ecdsaSHA256,
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
		}.Execute(tr)
		return err
	})
	if !errors.Is(err, tpm2.TPMRCTicket) {
		t.Errorf("signing a forged structure: %v, want %v", err, tpm2.TPMRCTicket)
	}
}

func TestForgedAnchorsAreRefused(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	n := load(t, tpm, store(t))
	other := load(t, reopen(t, tpmtest.StartManufactured(t).Address), store(t))
	v := statementOf(t, n)
	digest := sha256.Sum256([]byte("checkpoint"))
	good := anchorOf(t, n, digest)
	later := anchorOf(t, n, digest)
	earlier := anchorOf(t, n, sha256.Sum256([]byte("another checkpoint")))
	others := anchorOf(t, other, digest)
	ordinary := ordinaryIndex(t, n, real, digest[:])
	real.Restart()
	rebooted := anchorOf(t, n, digest)

	for _, tt := range []struct {
		name  string
		forge func(*appraisal.Anchor)
		want  error
	}{
		{"another machine's anchor", func(a *appraisal.Anchor) { *a = others }, appraisal.ErrSignature},
		{"another machine's counter", func(a *appraisal.Anchor) { a.Counter = others.Counter }, appraisal.ErrSignature},
		{"an anchor of another checkpoint", func(a *appraisal.Anchor) { *a = earlier }, appraisal.ErrNonce},
		{"a quote of another checkpoint", func(a *appraisal.Anchor) { a.Quote = earlier.Quote }, appraisal.ErrNonce},
		{"a quote from before", func(a *appraisal.Anchor) {
			*a = appraisal.Anchor{Version: 1, Counter: later.Counter, Quote: good.Quote}
		}, appraisal.ErrNonce},
		{"a quote from after a reboot", func(a *appraisal.Anchor) { a.Quote = rebooted.Quote }, appraisal.ErrNonce},
		{"a quote from before a reboot", func(a *appraisal.Anchor) { a.Counter = rebooted.Counter }, appraisal.ErrNonce},
		{"counter and quote changed about", func(a *appraisal.Anchor) { a.Counter, a.Quote = a.Quote, a.Counter }, appraisal.ErrType},
		{"an index that holds any number", func(a *appraisal.Anchor) { a.Counter = ordinary }, appraisal.ErrCounter},
		{"a changed count", func(a *appraisal.Anchor) { a.Counter.Attested = flip(a.Counter.Attested, len(a.Counter.Attested)-1) }, appraisal.ErrSignature},
		{"a changed signature", func(a *appraisal.Anchor) { a.Counter.Signature = flip(a.Counter.Signature, 20) }, appraisal.ErrSignature},
		{"no version", func(a *appraisal.Anchor) { a.Version = 0 }, nil},
		{"no quote", func(a *appraisal.Anchor) { a.Quote = appraisal.Signed{} }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := clone(t, good)
			tt.forge(&a)
			_, err := v.Anchor(encode(t, a), digest)
			if err == nil {
				t.Fatal("the forgery was accepted")
			}
			if tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("Anchor = %v, want %v", err, tt.want)
			}
		})
	}
}

// ordinaryIndex puts an NV index that can be written where the counter was,
// with a number in it that suits, and has the AK certify it. Then it puts the
// counter back.
func ordinaryIndex(t *testing.T, n *Node, real *tpmtest.TPM, data []byte) (s appraisal.Signed) {
	t.Helper()
	undefine(t, real, n.keys.Counter.Index)
	public := appraisal.CounterPublic(n.keys.Counter.Index)
	public.Attributes.NT = tpm2.TPMNTOrdinary
	public.Attributes.Written = false
	err := n.tpm.do(t.Context(), "forging a counter", operationLimit, func(tr transport.TPM) error {
		_, err := tpm2.NVDefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			PublicInfo: tpm2.New2B(public),
		}.Execute(tr)
		if err != nil {
			return err
		}
		named, err := tpm2.NVReadPublic{NVIndex: public.NVIndex}.Execute(tr)
		if err != nil {
			return err
		}
		h := tpm2.NamedHandle{Handle: public.NVIndex, Name: named.NVName}
		_, err = tpm2.NVWrite{
			AuthHandle: withAuth(h, tpm2.PasswordAuth(nil)), NVIndex: h,
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: []byte{0, 0, 0, 0, 0, 0, 0, 99}},
		}.Execute(tr)
		if err != nil {
			return err
		}
		ak, err := n.load(tr, n.keys.AK)
		if err != nil {
			return err
		}
		r, err := tpm2.NVCertify{
			SignHandle: withAuth(ak, tpm2.PasswordAuth(nil)), AuthHandle: withAuth(h, tpm2.PasswordAuth(nil)), NVIndex: h,
			QualifyingData: tpm2.TPM2BData{Buffer: data}, InScheme: ecdsaSHA256, Size: appraisal.CounterLen,
		}.Execute(tr)
		if err != nil {
			return err
		}
		s = newSigned(r.CertifyInfo, r.Signature)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	undefine(t, real, n.keys.Counter.Index)
	if err := n.makeCounter(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// A counter that was deleted and made again goes on above where it was, so a
// rolled-back log does not get its old counts again.
func TestCounterMadeAgainGoesOnAboveWhereItWas(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	n := load(t, tpm, store(t))
	v := statementOf(t, n)
	digest := [32]byte{1}
	count := func() uint64 {
		f, err := v.Anchor(encode(t, anchorOf(t, n, digest)), digest)
		if err != nil {
			t.Fatal(err)
		}
		return f.Counter
	}
	before := count()
	undefine(t, real, n.keys.Counter.Index)
	if err := n.makeCounter(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := count(); after <= before {
		t.Errorf("the counter went from %d to %d", before, after)
	}
}

func statementOf(t *testing.T, n *Node) *appraisal.Verified {
	t.Helper()
	logKey := newLogKey(t)
	s, err := n.Statement(t.Context(), logKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	v, err := appraisal.VerifyStatement(s, logKey)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func decodeStatement(t *testing.T, n *Node, logKey []byte) (s appraisal.Statement) {
	t.Helper()
	b, err := n.Statement(t.Context(), logKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func anchorOf(t *testing.T, n *Node, digest [32]byte) (a appraisal.Anchor) {
	t.Helper()
	b, err := n.Anchor(t.Context(), digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &a); err != nil {
		t.Fatal(err)
	}
	return a
}
