package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
)

var exampleOrg = spiffeid.RequireTrustDomainFromString("example.org")

func newAuthority(t *testing.T, td spiffeid.TrustDomain) appraisal.Authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a, err := appraisal.NewAuthority(key, td, time.Now(), 10*365*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func rootSHA256(a appraisal.Authority) string {
	d := sha256.Sum256(a.Root.Raw)
	return hex.EncodeToString(d[:])
}

// A machine of the attacker's that shows a good machine's endorsement key gets
// an approval that neither of the two can open.
func TestCuckooCannotOpenItsApproval(t *testing.T) {
	t.Parallel()
	tpm, _ := open(t)
	victim := load(t, tpm, store(t))
	cuckoo := load(t, reopen(t, tpmtest.StartManufactured(t).Address), store(t))
	a := newAuthority(t, exampleOrg)
	terms := appraisal.Terms{Policy: policy(t, "endorsement: {keys: ["+victim.EKSHA256()+"]}\nboot_state: any\n"), AnyNonce: true, Life: 24 * time.Hour, Now: time.Now()}
	b, err := cuckoo.Request(t.Context(), exampleOrg, nil, Sources{})
	if err != nil {
		t.Fatal(err)
	}
	var r map[string]json.RawMessage
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	var e appraisal.Evidence
	if err := json.Unmarshal(r["evidence"], &e); err != nil {
		t.Fatal(err)
	}
	e.EK = victim.keys.EK
	r["evidence"] = encode(t, e)
	approval, _, _, err := a.Approve(encode(t, r), terms)
	if err != nil {
		t.Fatal(err) // nothing in the request shows the lie
	}
	// With vouchd's own checks out of the way.
	cuckoo.keys.EK = victim.keys.EK
	if _, err := cuckoo.Install(t.Context(), approval, rootSHA256(a)); err == nil {
		t.Error("the cuckoo opened it")
	}
	victim.ak = cuckoo.ak
	if _, err := victim.Install(t.Context(), approval, rootSHA256(a)); err == nil {
		t.Error("the victim's TPM opened it for the cuckoo's key")
	}
}
