package node

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/secret"
)

// A counter is the node's counter in the TPM's NV memory.
type counter struct {
	Index tpm2.TPMHandle
	Auth  secret.Bytes
	Made  bool
}

// counterFile is a counter as the store has it.
type counterFile struct {
	Index tpm2.TPMHandle `json:"index"`
	Auth  []byte         `json:"auth"`
	Made  bool           `json:"made"`
}

func (c counter) MarshalJSON() ([]byte, error) {
	return json.Marshal(counterFile{c.Index, c.Auth.Reveal(), c.Made})
}

func (c *counter) UnmarshalJSON(b []byte) error {
	var f counterFile
	err := json.Unmarshal(b, &f)
	*c = counter{f.Index, secret.Of(f.Auth), f.Made}
	return err
}

// Counters get an index in the owner's range of the TCG's registry of handles,
// at a place of our own.
const (
	firstCounter = tpm2.TPMHandle(0x01807664) // "vd"
	lastCounter  = firstCounter + 15
)

// newCounter chooses a free index and an authorisation; makeCounter defines it.
func newCounter(tr transport.TPM) (counter, error) {
	c := counter{Auth: secret.Of(newAuth())}
	for c.Index = firstCounter; c.Index <= lastCounter; c.Index++ {
		_, err := tpm2.NVReadPublic{NVIndex: c.Index}.Execute(tr)
		if errors.Is(err, tpm2.TPMRCHandle) {
			return c, nil
		}
		if err != nil {
			return counter{}, err
		}
	}
	return counter{}, fmt.Errorf("NV indices %#x to %#x are all taken; remove those of former installations with tpm2_nvundefine", firstCounter, lastCounter)
}

// newAuth draws an authorisation. A TPM drops zeros at an authorisation's end
// (TPM 2.0 Part 1, 19.6.5), and go-tpm 0.9.8 all that follows any zero, so none
// is used.
func newAuth() []byte {
	auth := make([]byte, 32)
	rand.Read(auth)
	for i := range auth {
		for auth[i] == 0 {
			rand.Read(auth[i : i+1])
		}
	}
	return auth
}

// makeCounter defines the chosen index, unless a crash came after that and
// before it was written down, and counts once, after which its name stays.
func (n *ticker) makeCounter(ctx context.Context) error {
	if err := n.parseSRK(); err != nil {
		return err
	}
	c := n.keys.Counter
	err := n.tpm.do(ctx, "making the counter", operationLimit, func(tr transport.TPM) error {
		public, err := n.defineCounter(tr, c)
		if err != nil {
			return err
		}
		return c.increment(tr, *public, c.authorised())
	})
	if err != nil {
		return err
	}
	n.keys.Counter.Made = true
	return n.save()
}

// defineCounter returns the counter's public area as it is now.
func (n *ticker) defineCounter(tr transport.TPM, c counter) (*tpm2.TPMSNVPublic, error) {
	found, err := tpm2.NVReadPublic{NVIndex: c.Index}.Execute(tr)
	if err == nil {
		return found.NVPublic.Contents()
	}
	if !errors.Is(err, tpm2.TPMRCHandle) {
		return nil, err
	}
	public := appraisal.CounterPublic(c.Index)
	public.Attributes.Written = false // its name changes with the first write
	_, err = tpm2.NVDefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: n.salted(tpm2.AESEncryption(128, tpm2.EncryptIn))},
		Auth:       tpm2.TPM2BAuth{Buffer: c.Auth.Reveal()},
		PublicInfo: tpm2.New2B(public),
	}.Execute(tr)
	return &public, err
}

// authorised returns a session that proves the counter's authorisation without
// sending it. It is 32 random bytes, so nothing that is seen helps to guess it.
func (c counter) authorised() tpm2.Session {
	return tpm2.HMAC(tpm2.TPMAlgSHA256, nonceLen, tpm2.Auth(c.Auth.Reveal()))
}

func (c counter) increment(tr transport.TPM, public tpm2.TPMSNVPublic, auth tpm2.Session) error {
	name, err := tpm2.NVName(&public)
	if err != nil {
		return err
	}
	h := tpm2.NamedHandle{Handle: c.Index, Name: *name}
	_, err = tpm2.NVIncrement{AuthHandle: withAuth(h, auth), NVIndex: h}.Execute(tr)
	return err
}

// certifyCounter has the AK sign the counter's value.
func (n *ticker) certifyCounter(tr transport.TPM, ak tpm2.NamedHandle, data []byte, auth tpm2.Session) (appraisal.Signed, error) {
	c := n.keys.Counter
	public := appraisal.CounterPublic(c.Index)
	name, err := tpm2.NVName(&public)
	if err != nil {
		return appraisal.Signed{}, err
	}
	h := tpm2.NamedHandle{Handle: c.Index, Name: *name}
	r, err := tpm2.NVCertify{
		SignHandle:     withAuth(ak, tpm2.PasswordAuth(nil)),
		AuthHandle:     withAuth(h, auth),
		NVIndex:        h,
		QualifyingData: tpm2.TPM2BData{Buffer: data},
		InScheme:       ecdsaSHA256,
		Size:           appraisal.CounterLen,
	}.Execute(tr)
	if err != nil {
		return appraisal.Signed{}, err
	}
	attested, err := r.CertifyInfo.Contents()
	if err != nil {
		return appraisal.Signed{}, err
	}
	info, err := attested.Attested.NV()
	if err != nil {
		return appraisal.Signed{}, err
	}
	if len(info.NVContents.Buffer) != appraisal.CounterLen {
		return appraisal.Signed{}, appraisal.ErrCounter
	}
	n.certified.Store(binary.BigEndian.Uint64(info.NVContents.Buffer))
	return newSigned(r.CertifyInfo, r.Signature), nil
}

// Anchor increments the TPM's counter and has the AK sign the new value and the
// machine's boot state, both together with digest. An anchor proves that digest existed
// at this count, which distinguishes the newest anchor from an older one. If the TPM is
// lost on the way, the counter may skip a value; Certify followed by Count never does.
//
// A counter lasts for some hundred thousand steps in a hardware TPM: anchor every few
// minutes, not every request.
func (n *ticker) Anchor(ctx context.Context, digest [32]byte) ([]byte, error) {
	return n.anchor(ctx, digest, n.keys.Counter.increment)
}

// Certify is Anchor without counting: it signs the counter's present value.
func (n *ticker) Certify(ctx context.Context, digest [32]byte) ([]byte, error) {
	return n.anchor(ctx, digest, nil)
}

// Count counts the counter one up from the value that was certified last, and
// does nothing if it is past that already. So it counts once even where the TPM
// is lost on the way and asked again.
func (n *ticker) Count(ctx context.Context) error {
	certified := n.certified.Load()
	if certified == 0 {
		return errors.New("counting: no value was certified yet")
	}
	return n.tpm.do(ctx, "counting in the TPM", operationLimit, func(tr transport.TPM) error {
		c := n.keys.Counter
		public := appraisal.CounterPublic(c.Index)
		name, err := tpm2.NVName(&public)
		if err != nil {
			return err
		}
		h := tpm2.NamedHandle{Handle: c.Index, Name: *name}
		now, err := tpm2.NVRead{AuthHandle: withAuth(h, c.authorised()), NVIndex: h, Size: appraisal.CounterLen}.Execute(tr)
		if err != nil {
			return n.counterGone(err)
		}
		if len(now.Data.Buffer) != appraisal.CounterLen || binary.BigEndian.Uint64(now.Data.Buffer) != certified {
			return nil
		}
		return c.increment(tr, public, c.authorised())
	})
}

// anchor certifies the counter, after count if that is not nil, and quotes.
func (n *ticker) anchor(ctx context.Context, digest [32]byte, count func(transport.TPM, tpm2.TPMSNVPublic, tpm2.Session) error) ([]byte, error) {
	var doc appraisal.Anchor
	err := n.tpm.do(ctx, "anchoring in the TPM", operationLimit, func(tr transport.TPM) error {
		// One session for all commands on the counter.
		auth, done, err := tpm2.HMACSession(tr, tpm2.TPMAlgSHA256, nonceLen, tpm2.Auth(n.keys.Counter.Auth.Reveal()))
		if err != nil {
			return err
		}
		defer done()
		if count != nil {
			err = count(tr, appraisal.CounterPublic(n.keys.Counter.Index), auth)
		}
		if err != nil {
			return n.counterGone(err)
		}
		ak, err := n.load(tr, n.keys.AK)
		if err != nil {
			return err
		}
		if doc.Counter, err = n.certifyCounter(tr, ak, digest[:], auth); err != nil {
			return n.counterGone(err)
		}
		doc.Quote, err = quoteOnce(tr, ak, tpm2.TPMAlgSHA256, appraisal.BootPCRs, digest[:])
		return err
	})
	if err != nil {
		return nil, err
	}
	return doc.Encode()
}

// counterGone says so if that is why a command on the counter failed.
func (n *ticker) counterGone(err error) error {
	if errors.Is(err, tpm2.TPMRCHandle) {
		return fmt.Errorf("counter %#x is gone: %w: %w", n.keys.Counter.Index, ErrOtherTPM, err)
	}
	return err
}
