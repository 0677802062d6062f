package node

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

// An index is an NV index as another user of the TPM defines it, with the owner's
// empty authorisation.
type index struct {
	handle tpm2.TPMHandle
	attrs  tpm2.TPMANV
	auth   string
	size   uint16 // 0: what data has
	data   []byte // nil: never written
	locked bool
}

var readable = tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true}

func (i index) define(t *testing.T, real *tpmtest.TPM) {
	t.Helper()
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	real.Do(func(tr transport.TPM) error {
		_, err := tpm2.NVDefineSpace{
			AuthHandle: owner, Auth: tpm2.TPM2BAuth{Buffer: []byte(i.auth)},
			PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
				NVIndex: i.handle, NameAlg: tpm2.TPMAlgSHA256, Attributes: i.attrs, DataSize: max(i.size, uint16(len(i.data))),
			}),
		}.Execute(tr)
		named := func() tpm2.NamedHandle {
			r, e := tpm2.NVReadPublic{NVIndex: i.handle}.Execute(tr)
			if e != nil {
				err = e
				return tpm2.NamedHandle{}
			}
			return tpm2.NamedHandle{Handle: i.handle, Name: r.NVName}
		}
		for offset := 0; err == nil && offset < len(i.data); offset += 512 {
			_, err = tpm2.NVWrite{
				AuthHandle: owner, NVIndex: named(), Offset: uint16(offset),
				Data: tpm2.TPM2BMaxNVBuffer{Buffer: i.data[offset:min(offset+512, len(i.data))]},
			}.Execute(tr)
		}
		if err == nil && i.locked {
			_, err = tpm2.NVReadLock{AuthHandle: owner, NVIndex: named()}.Execute(tr)
		}
		return err
	})
}

// persist makes a primary key of the owner's and keeps it loaded.
func persist(t *testing.T, real *tpmtest.TPM, template tpm2.TPMTPublic, handles ...tpm2.TPMHandle) {
	t.Helper()
	real.Do(func(tr transport.TPM) error {
		owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
		r, err := tpm2.CreatePrimary{PrimaryHandle: owner, InPublic: tpm2.New2B(template)}.Execute(tr)
		if err != nil {
			return err
		}
		for _, h := range handles {
			_, err = tpm2.EvictControl{Auth: owner, ObjectHandle: tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name}, PersistentHandle: h}.Execute(tr)
			if err != nil {
				return err
			}
		}
		return flush(tr, r.ObjectHandle)
	})
}

func TestOddIndicesHideNoCertificate(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	intermediate := real.CA[1].Raw
	swallows := append([]byte{0x30, 0x82, 0x1f, 0x00}, bytes.Repeat([]byte{7}, 100)...) // says it is longer than it is
	policy := readable
	policy.OwnerRead, policy.AuthRead, policy.PolicyRead = false, false, true
	protected := readable
	protected.OwnerRead = false
	guarded := protected
	guarded.NoDA = false
	locked := readable
	locked.ReadSTClear = true
	counts := readable
	counts.NT = tpm2.TPMNTCounter
	for _, i := range []index{
		{handle: 0x01c00100, attrs: readable, size: 100},
		{handle: 0x01c00101, attrs: policy, data: []byte("for a policy")},
		{handle: 0x01c00102, attrs: protected, auth: "password", data: []byte("for who knows a password")},
		{handle: 0x01c00103, attrs: guarded, auth: "password", data: []byte("whose wrong password counts")},
		{handle: 0x01c00104, attrs: readable},
		{handle: 0x01c00105, attrs: readable, data: []byte("garbage")},
		{handle: 0x01c00106, attrs: readable, data: bytes.Repeat([]byte{0xff}, 2048)},
		{handle: 0x01c00107, attrs: counts, size: 8},
		{handle: 0x01c00108, attrs: locked, data: []byte("locked"), locked: true},
		{handle: 0x01c00109, attrs: readable, data: swallows},
		{handle: 0x01c0010a, attrs: readable, data: append(bytes.Clone(real.CA[0].Raw), intermediate[:300]...)}, // a part of the real one
		{handle: 0x01c00110, attrs: readable, data: intermediate[:700]},
		{handle: 0x01c00111, attrs: readable, data: append(bytes.Clone(intermediate[700:]), 0xff, 0xff)},
		{handle: 0x01c00112, attrs: readable, data: swallows},
		// Where certificates of other endorsement keys would be.
		{handle: 0x01c0000a, attrs: readable, data: []byte("garbage")},
		{handle: 0x01c00012, attrs: readable, size: 100},
		{handle: 0x01c00014, attrs: protected, auth: "password", data: []byte("secret")},
	} {
		i.define(t, real)
	}
	n := load(t, tpm, store(t))
	c, err := n.keys.EK.Certificate()
	if err != nil || c == nil || !n.HasEKCertificate() {
		t.Fatalf("the certificate: %v, %v", c, err)
	}
	if !slices.ContainsFunc(n.keys.EK.Certificates[1:], func(der []byte) bool { return bytes.Equal(der, intermediate) }) {
		t.Errorf("the intermediate certificate is not among the %d of the chain", len(n.keys.EK.Certificates)-1)
	}
	said := strings.Join(n.Ignored(), "\n")
	for _, want := range []string{
		"certificate in NV index 0x1c00100: it was never written",
		"certificate in NV index 0x1c00101: it is not for everybody to read",
		"certificate in NV index 0x1c00102: reading it: ",
		"certificate in NV index 0x1c00103: it is not for everybody to read",
		"certificate in NV index 0x1c00107: it counts or is extended",
		"certificate in NV index 0x1c00108: reading it: ",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("nothing says %q in:\n%s", want, said)
		}
	}
	// It is said again after a restart, and evidence is as good as ever.
	n = load(t, tpm, n.store)
	if again := strings.Join(n.Ignored(), "\n"); again != said {
		t.Errorf("said after a restart:\n%s", again)
	}
	m := &machine{Node: n, real: real}
	m.evidence(t)
	if left := real.Handles(); len(left) > 0 {
		t.Errorf("handles %x are left", left)
	}
}

// A refusing TPM has one NV index, and lets nobody read it.
type refusing tpm2.TPMSNVPublic

func (r refusing) Send(command []byte) ([]byte, error) {
	code, parameters := tpm2.TPMRCNVAuthorization, []byte(nil)
	if tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) == tpm2.TPMCCNVReadPublic {
		code = tpm2.TPMRCSuccess
		parameters = append(tpm2.Marshal(tpm2.New2B(tpm2.TPMSNVPublic(r))), 0, 1, 7) // and a name
	}
	b := binary.BigEndian.AppendUint32([]byte{0x80, 0x01}, uint32(headerLen+len(parameters)))
	return append(binary.BigEndian.AppendUint32(b, uint32(code)), parameters...), nil
}

func TestLargeIndexIsNotRead(t *testing.T) {
	t.Parallel()
	a := readable
	a.Written = true
	for size, says := range map[uint16]string{0xffff: "its 65535 bytes are more than 8192", 0: "it is empty", 100: "reading it: "} {
		_, err := readNV(refusing{NVIndex: 0x01c00100, NameAlg: tpm2.TPMAlgSHA256, Attributes: a, DataSize: size}, 0x01c00100)
		if !isUnusable(err) || !strings.Contains(err.Error(), says) {
			t.Errorf("of %d bytes: %v, want %q", size, err, says)
		}
	}
}

// A key in the place of an endorsement key is one only if the maker's certificate, or
// the endorsement hierarchy, says so.
func TestKeyInThePlaceOfAnEndorsementKeyIsNotTakenForIt(t *testing.T) {
	t.Parallel()
	for _, certified := range []bool{true, false} {
		tpm, real := open(t)
		if !certified {
			undefine(t, real, 0x01c00002)
			undefine(t, real, 0x01c00016)
			evict(t, real, 0x81010001)
		}
		persist(t, real, tpm2.RSAEKTemplate, 0x81010000)
		persist(t, real, tpm2.ECCSRKTemplate, 0x81010002)
		persist(t, real, tpm2.RSASRKTemplate, 0x81010003)
		n := load(t, tpm, store(t))
		if n.HasEKCertificate() != certified {
			t.Errorf("certified: %t, want %t; ignored %q", n.HasEKCertificate(), certified, n.Ignored())
		}
		var want []byte
		err := tpm.do(t.Context(), "making the EK", creationLimit, func(tr transport.TPM) error {
			public, err := deriveEndorsementKey(tr, ekTemplates()[0])
			if err == nil {
				want = tpm2.Marshal(public)
			}
			return err
		})
		if err != nil || !bytes.Equal(n.keys.EK.Public, want) {
			t.Errorf("certified %t: the endorsement key is another's (%v)", certified, err)
		}
	}
}

func TestMalformedEndorsementCertificateIsNamed(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		data func(real []byte) []byte
		says string
	}{
		{"no certificate", func([]byte) []byte { return []byte{0x30, 3, 2, 1, 0} }, "EK certificate in NV index 0x1c00002: it is malformed: x509: "},
		{"not even DER", func([]byte) []byte { return bytes.Repeat([]byte{0xff}, 900) }, "EK certificate in NV index 0x1c00002: its 900 bytes do not begin with a certificate"},
		{"cut off", func(real []byte) []byte { return real[:len(real)-1] }, "do not begin with a certificate"},
		{"another key's", func([]byte) []byte { return nil }, "EK certificate in NV index 0x1c00002: it is not for this TPM's RSA-2048 key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tpm, real := open(t)
			good := load(t, tpm, store(t)).keys.EK.Certificates[0]
			undefine(t, real, 0x01c00002)
			undefine(t, real, 0x01c00016)
			data := tt.data(good)
			if data == nil {
				data = real.CA[1].Raw
			}
			index{handle: 0x01c00002, attrs: readable, data: data}.define(t, real)
			n := load(t, tpm, store(t))
			if n.HasEKCertificate() || len(n.Ignored()) != 1 || !strings.Contains(n.Ignored()[0], tt.says) {
				t.Errorf("certificate: %t, ignored %q, want %q", n.HasEKCertificate(), n.Ignored(), tt.says)
			}
		})
	}
}

func TestOthersKeysLeaveRoomForTheStorageRootKey(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	persist(t, real, tpm2.RSASRKTemplate, storageRootHandles[:4]...)
	n := load(t, tpm, store(t))
	checkSignature(t, n.Signer())
}

// What is in the places of a cloud's attestation key may be anything.
func TestOddObjectsInThePlaceOfAPlatformKeyDoNotStopEvidence(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	sequence := []byte{0x30, 3, 2, 1, 0}
	index{handle: 0x01c101d0, attrs: readable, data: sequence}.define(t, real)
	persist(t, real, tpm2.ECCSRKTemplate, 0x81000003) // which signs nothing
	index{handle: 0x01c10002, attrs: readable, data: sequence}.define(t, real)
	index{handle: 0x01c10003, attrs: readable, data: []byte("no template")}.define(t, real)
	index{handle: 0x01c10000, attrs: readable, data: sequence}.define(t, real)
	index{handle: 0x01c10001, attrs: readable, data: tpm2.Marshal(tpm2.ECCSRKTemplate)}.define(t, real)
	m := &machine{Node: load(t, tpm, store(t)), real: real}
	e, given := m.evidence(t)
	r := appraisal.Appraise(e, policy(t, "endorsement: {keys: ["+m.EKSHA256()+"]}\nboot_state: any\n"), given)
	if !r.Passed {
		t.Errorf("%v", r)
	}
	if left := real.Handles(); len(left) > 0 {
		t.Errorf("handles %x are left", left)
	}
}
