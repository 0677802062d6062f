package node

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
	"github.com/vouchd/vouchd/state"
)

var _ Store = (*state.Dir)(nil)

func TestLoadFindsTheSameKeysAgain(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	dir := store(t)
	first := load(t, tpm, dir)
	second := load(t, tpm, dir)
	if !first.NodeKey().Equal(second.NodeKey()) || first.AKName() != second.AKName() || first.EKSHA256() != second.EKSHA256() {
		t.Errorf("keys changed: %v then %v", first.keys, second.keys)
	}
	if len(first.EKSHA256()) != 64 || len(first.AKName()) != 68 {
		t.Errorf("EK digest %q and AK name %q are not of the length of a SHA-256 digest and name", first.EKSHA256(), first.AKName())
	}
	checkSignature(t, second.Signer())
}

func TestLoadOfExistingKeysIsOneCommand(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	dir := store(t)
	load(t, tpm, dir)
	var seen recorded
	tpm.open = recording(tpm.open, &seen)
	load(t, tpm, dir)
	if seen.sent != 1 {
		t.Errorf("loading existing keys took %d commands, want 1", seen.sent)
	}
}

func TestKeysOutliveAReboot(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	dir := store(t)
	n := load(t, tpm, dir)
	sealed, err := n.Seal(t.Context(), "label", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	real.Restart()
	n = load(t, tpm, dir)
	checkSignature(t, n.Signer())
	if secret, err := n.Unseal(t.Context(), "label", sealed); err != nil || string(secret) != "secret" {
		t.Errorf("Unseal after a reboot = %q, %v", secret, err)
	}
}

func TestAnotherTPMUnderTheStoreIsNoticed(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(*testing.T, *tpmtest.TPM) (address string)
	}{
		{"cleared", func(t *testing.T, real *tpmtest.TPM) string { real.Clear(); return real.Address }},
		{"replaced", func(t *testing.T, real *tpmtest.TPM) string { return tpmtest.StartManufactured(t).Address }},
		{"replaced by one that vouchd used before", func(t *testing.T, real *tpmtest.TPM) string {
			other := tpmtest.StartManufactured(t)
			load(t, reopen(t, other.Address), store(t))
			return other.Address
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tpm, real := open(t)
			dir := store(t)
			load(t, tpm, dir)
			before := contents(t, dir)
			_, err := Load(t.Context(), reopen(t, tt.change(t, real)), dir)
			if !errors.Is(err, ErrOtherTPM) {
				t.Fatalf("Load = %v, want %v", err, ErrOtherTPM)
			}
			if !strings.Contains(err.Error(), "vouch node reset") {
				t.Errorf("%v does not name the way out", err)
			}
			if after := contents(t, dir); !maps.EqualFunc(before, after, bytes.Equal) {
				t.Errorf("the store changed from %q to %q", slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(after)))
			}
		})
	}
}

func TestTPMClearedUnderARunningNodeIsNoticed(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	n := load(t, tpm, store(t))
	real.Clear()
	if _, err := n.Seal(t.Context(), "label", nil); !errors.Is(err, ErrOtherTPM) {
		t.Errorf("Seal = %v, want %v", err, ErrOtherTPM)
	}
	if _, err := n.Anchor(t.Context(), [32]byte{}); !errors.Is(err, ErrOtherTPM) {
		t.Errorf("Anchor = %v, want %v", err, ErrOtherTPM)
	}
}

func TestStorageRootKeyIsMadeAgain(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	dir := store(t)
	load(t, tpm, dir)
	evict(t, real, 0x81000001)
	checkSignature(t, load(t, tpm, dir).Signer())
}

func TestForeignStorageRootKeyIsLeftAlone(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	real.Do(func(tr transport.TPM) error {
		r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.RSASRKTemplate)}.Execute(tr)
		if err != nil {
			return err
		}
		_, err = tpm2.EvictControl{
			Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			ObjectHandle:     tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name},
			PersistentHandle: 0x81000001,
		}.Execute(tr)
		return err
	})
	n := load(t, tpm, store(t))
	if n.keys.SRK.Handle != 0x81000002 {
		t.Errorf("storage root key is at %#x, want the next handle", n.keys.SRK.Handle)
	}
	checkSignature(t, n.Signer())
}

func TestOwnerPasswordIsNamed(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	real.Do(func(tr transport.TPM) error {
		_, err := tpm2.HierarchyChangeAuth{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			NewAuth:    tpm2.TPM2BAuth{Buffer: []byte("owned")},
		}.Execute(tr)
		return err
	})
	_, err := Load(t.Context(), tpm, store(t))
	if err == nil || !strings.Contains(err.Error(), "tpm2_changeauth") {
		t.Errorf("Load = %v, which does not name the way out", err)
	}
}

// A TPM in lockout refuses keys that are subject to dictionary attack
// protection, and none of the node's are.
func TestLockoutDoesNotStopTheNode(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	n := load(t, tpm, store(t))
	real.Do(func(tr transport.TPM) error {
		// TPM2_DictionaryAttackParameters with no wrong authorisation allowed,
		// which go-tpm lacks.
		command := []byte{0x80, 0x02, 0, 0, 0, 39, 0, 0, 0x01, 0x3a, // sessions, length, command
			0x40, 0, 0, 0x0a, // TPM_RH_LOCKOUT
			0, 0, 0, 9, 0x40, 0, 0, 0x09, 0, 0, 1, 0, 0, // empty password
			0, 0, 0, 0, 0, 0, 3, 0xe8, 0, 0, 3, 0xe8} // tries, recovery times in seconds
		response, err := tr.Send(command)
		if err == nil && responseCode(response) != tpm2.TPMRCSuccess {
			err = responseCode(response)
		}
		if err != nil {
			return err
		}
		r, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTPermanent), PropertyCount: 1}.Execute(tr)
		if err != nil {
			return err
		}
		p, err := r.CapabilityData.Data.TPMProperties()
		if err != nil {
			return err
		}
		const inLockout = 1 << 9 // TPMA_PERMANENT
		if p.TPMProperty[0].Value&inLockout == 0 {
			return errors.New("the TPM is not in lockout")
		}
		return nil
	})
	checkSignature(t, n.Signer())
	if _, err := n.Anchor(t.Context(), [32]byte{}); err != nil {
		t.Error(err)
	}
	if _, err := n.Seal(t.Context(), "label", nil); err != nil {
		t.Error(err)
	}
}

func TestNamedKeys(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	n := load(t, tpm, store(t))
	jwt, err := n.Key(t.Context(), "jwt")
	if err != nil {
		t.Fatal(err)
	}
	checkSignature(t, jwt)
	again, err := n.Key(t.Context(), "jwt")
	if err != nil {
		t.Fatal(err)
	}
	other, err := n.Key(t.Context(), "jwt-2")
	if err != nil {
		t.Fatal(err)
	}
	public := jwt.Public().(*ecdsa.PublicKey)
	if !public.Equal(again.Public()) {
		t.Error("the same name gave another key")
	}
	if public.Equal(other.Public()) || public.Equal(n.NodeKey()) {
		t.Error("another name gave the same key")
	}
	for _, name := range []string{"", "../keys", "JWT", strings.Repeat("a", 33), "-a"} {
		if _, err := n.Key(t.Context(), name); err == nil {
			t.Errorf("Key(%q) succeeded", name)
		}
	}
}

func TestSignerTakesSHA256Only(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	s := load(t, tpm, store(t)).Signer()
	for _, tt := range []struct {
		name   string
		digest int
		opts   crypto.SignerOpts
	}{
		{"SHA-384", 48, crypto.SHA384},
		{"a digest of the wrong length", 20, crypto.SHA256},
		{"no hash", 32, crypto.Hash(0)},
		{"no options", 32, nil},
	} {
		if _, err := s.Sign(rand.Reader, make([]byte, tt.digest), tt.opts); err == nil {
			t.Errorf("%s: signed", tt.name)
		}
	}
}

// Whoever sits on the bus can change what comes back.
func TestSignatureThatDoesNotVerifyIsNotPassedOn(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	n := load(t, tpm, store(t))
	inner := tpm.open
	tpm.open = func(ctx context.Context) (link, error) {
		l, err := inner(ctx)
		return lyingLink{l}, err
	}
	if err := sign(n.Signer()); err == nil || !strings.Contains(err.Error(), "does not verify") {
		t.Errorf("Sign = %v", err)
	}
}

// A lyingLink changes a bit of each signature.
type lyingLink struct{ link }

func TestNoHandlesAreLeftAfterAThousandOperations(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	n := load(t, tpm, store(t))
	ctx := t.Context()
	sealed, err := n.Seal(ctx, "label", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	logKey := newLogKey(t)
	digest := sha256.Sum256(nil)
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := range 250 {
				var err error
				switch (worker + i) % 8 {
				case 0, 1, 2:
					_, err = n.Signer().Sign(nil, digest[:], crypto.SHA256)
				case 3, 4:
					_, err = n.Unseal(ctx, "label", sealed)
				case 5:
					_, err = n.Quote(ctx, digest)
				case 6:
					_, err = n.Anchor(ctx, digest)
				case 7:
					_, err = n.Statement(ctx, logKey, nil)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if left := real.Handles(); len(left) > 0 {
		t.Errorf("handles %x are left", left)
	}
}

func TestAuthorisationsHaveNoZeros(t *testing.T) {
	t.Parallel()
	for range 1000 {
		if auth := newAuth(); len(auth) != 32 || bytes.IndexByte(auth, 0) >= 0 {
			t.Fatalf("authorisation %x", auth)
		}
	}
}

func TestSigningGoesOnAcrossRestartsOfTheTPM(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	n := load(t, tpm, store(t))
	stop := make(chan struct{})
	signed := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			checkSignature(t, n.Signer())
			select {
			case signed <- struct{}{}:
			case <-stop:
				return
			}
		}
	})
	for range 5 {
		<-signed
		real.Restart()
		<-signed // at least one that began or ended after the restart
	}
	close(stop)
	wg.Wait()
}

func TestLoadRefusesDamagedKeys(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	for _, tt := range []struct{ name, json string }{
		{"not JSON", "{"},
		{"nothing in it", "{}"},
		{"no storage root key", `{"srk":{"handle":2164260865,"public":"AAEC"}}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := store(t)
			if err := dir.Save(keysFile, keysVersion, []byte(tt.json)); err != nil {
				t.Fatal(err)
			}
			if _, err := Load(t.Context(), tpm, dir); err == nil {
				t.Error("Load succeeded")
			}
		})
	}
}

func TestFailingStoreIsReported(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	if _, err := Load(t.Context(), tpm, fullStore{}); !errors.Is(err, errFull) {
		t.Errorf("Load = %v, want %v", err, errFull)
	}
}

var errFull = errors.New("disk full")

type fullStore struct{}

func (fullStore) Load(string, int) ([]byte, int, error) { return nil, 0, fs.ErrNotExist }

func (fullStore) Save(string, int, []byte) error { return errFull }

func TestCrashBeforeTheCounterIsMended(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		undo func(*Node, *tpmtest.TPM)
	}{
		{"crash before the counter was defined", func(n *Node, real *tpmtest.TPM) { undefine(t, real, n.keys.Counter.Index) }},
		{"crash before it was written down", func(*Node, *tpmtest.TPM) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tpm, real := open(t)
			dir := store(t)
			n := load(t, tpm, dir)
			tt.undo(n, real)
			n.keys.Counter.Made = false
			if err := n.save(); err != nil {
				t.Fatal(err)
			}
			n = load(t, tpm, dir)
			if _, err := n.Anchor(t.Context(), [32]byte{}); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestMachineWithoutEndorsementCertificate(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	undefine(t, real, 0x01c00002)
	undefine(t, real, 0x01c00016)
	n := load(t, tpm, store(t))
	if n.EKSHA256() == "" || len(n.keys.EK.Certificates) != 0 {
		t.Errorf("EK %q with %d certificates, want a key without", n.EKSHA256(), len(n.keys.EK.Certificates))
	}
	logKey := newLogKey(t)
	s, err := n.Statement(t.Context(), logKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := appraisal.VerifyStatement(s, logKey); err != nil {
		t.Error(err)
	}
}

func TestEndorsementKeyOfTheHighRange(t *testing.T) {
	t.Parallel()
	tpm, real := open(t)
	undefine(t, real, 0x01c00002)
	n := load(t, tpm, store(t))
	c, err := n.keys.EK.Certificate()
	if err != nil || c == nil {
		t.Fatalf("its certificate: %v, %v", c, err)
	}
	if ec, ok := c.PublicKey.(*ecdsa.PublicKey); !ok || ec.Params().BitSize != 384 {
		t.Fatalf("endorsement key is %T, want P-384", c.PublicKey)
	}
	// The template makes the same key that the maker left loaded.
	err = tpm.do(t.Context(), "making the EK", creationLimit, func(tr transport.TPM) error {
		template := ekTemplates()[4]
		public, err := deriveEndorsementKey(tr, template)
		if err == nil && !bytes.Equal(tpm2.Marshal(public), n.keys.EK.Public) {
			t.Error("the template makes another key")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func contents(t *testing.T, dir *state.Dir) map[string][]byte {
	t.Helper()
	data, _, err := dir.Load(keysFile, keysVersion)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{keysFile: data}
}

func (l recordingLink) exchange(ctx context.Context, command []byte) ([]byte, error) {
	response, err := l.link.exchange(ctx, command)
	l.to.mu.Lock()
	defer l.to.mu.Unlock()
	l.to.all = append(append(l.to.all, command...), response...)
	l.to.sent++
	return response, err
}
