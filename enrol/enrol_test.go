package enrol

import (
	"crypto/x509"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/attest/node/tpmtest"
	"github.com/vouchd/vouchd/state"
)

const year = 365 * 24 * time.Hour

func passphrase(text string) Passphrase { return func() (string, error) { return text, nil } }

var right = passphrase("correct horse battery staple")

func plan() Plan {
	return Plan{TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Life: year, Passphrase: right, Now: time.Now()}
}

// founded is the directory of a new root whose key is in a TPM: a passphrase is
// slow by design.
func founded(t *testing.T) string {
	t.Helper()
	p := plan()
	p.TPM, p.Passphrase = tpmtest.Start(t).Address, nil
	return create(t, p)
}

func create(t *testing.T, p Plan) string {
	t.Helper()
	dir := t.TempDir()
	r, err := Create(t.Context(), dir, p)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func open(t *testing.T, dir string, p Passphrase) *Root {
	t.Helper()
	r, err := Open(dir, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestOnlyTheRightPassphraseSigns(t *testing.T) {
	t.Parallel()
	dir := create(t, plan())
	r := open(t, dir, passphrase("another passphrase"))
	text, err := os.ReadFile(r.CertificateFile())
	if err != nil || !strings.Contains(string(text), "BEGIN CERTIFICATE") {
		t.Errorf("the certificate's file holds %q, %v", text, err)
	}
	if r.TrustDomain() != "example.org" || r.KeyPlace() != KeyAge || len(r.SHA256()) != 64 || len(r.Hosts()) != 0 {
		t.Errorf("got %s, %s, %s, %v", r.TrustDomain(), r.KeyPlace(), r.SHA256(), r.Hosts())
	}
	if _, err := r.ApproveBoot(t.Context(), boot); err == nil || !strings.Contains(err.Error(), "root key of example.org: wrong passphrase") {
		t.Errorf("with a wrong passphrase: %v", err)
	}
	r.Close()
	if approval, err := open(t, dir, right).ApproveBoot(t.Context(), boot); err != nil || len(approval) == 0 {
		t.Errorf("with the right passphrase: %v", err)
	}
}

var boot = map[uint][]byte{7: make([]byte, 32)}

func TestDirectoryHoldsOneRootAndHasOneUser(t *testing.T) {
	t.Parallel()
	if _, err := Open(t.TempDir()+"/nowhere", nil); !errors.Is(err, ErrNone) {
		t.Errorf("a directory that is not there: %v", err)
	}
	if _, err := Open(t.TempDir(), nil); !errors.Is(err, ErrNone) {
		t.Errorf("an empty directory: %v", err)
	}
	dir := founded(t)
	if _, err := Create(t.Context(), dir, plan()); err == nil || !strings.Contains(err.Error(), "already holds a root CA") {
		t.Errorf("a second root: %v", err)
	}
	open(t, dir, nil)
	if _, err := Open(dir, nil); !errors.Is(err, state.ErrInUse) {
		t.Errorf("a second user: %v", err)
	}
}

func TestRootWithoutItsPassphraseIsNotCreated(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := plan()
	refused := errors.New("nobody is there")
	p.Passphrase = func() (string, error) { return "", refused }
	if _, err := Create(t.Context(), dir, p); !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	_, err := Open(dir, nil)
	for errors.Is(err, state.ErrInUse) { // a process that another test starts has the lock until it is another program
		_, err = Open(dir, nil)
	}
	if !errors.Is(err, ErrNone) {
		t.Errorf("there is a root: %v", err)
	}
}

func TestKeyOfAnotherRootIsRefused(t *testing.T) {
	t.Parallel()
	r, other := open(t, founded(t), nil), open(t, founded(t), nil)
	r.cert = other.cert
	if _, err := r.ApproveBoot(t.Context(), boot); err == nil || !strings.Contains(err.Error(), "does not belong to the root certificate") {
		t.Errorf("got %v", err)
	}
}

// issue adds a certificate as Approve saves it.
func issue(t *testing.T, r *Root, h Host) {
	t.Helper()
	r.issued = append(r.issued, h)
	if err := r.saveIssued(); err != nil {
		t.Fatal(err)
	}
}

func TestRevocationListNamesAllThatWereEverRevoked(t *testing.T) {
	t.Parallel()
	dir := founded(t)
	r := open(t, dir, nil)
	now := time.Now()
	for _, serial := range []string{"a1", "b2", "c3"} {
		issue(t, r, Host{Serial: serial, Hostname: serial, NotAfter: now.Add(year)})
	}
	if _, _, err := r.Revoke(t.Context(), "00", now); err == nil || !strings.Contains(err.Error(), "vouch authority list") {
		t.Errorf("an unknown serial number: %v", err)
	}
	var first Host
	for i, serial := range []string{"a1", "B2", "a1"} {
		h, file, err := r.Revoke(t.Context(), serial, now.Add(time.Duration(i)*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = h
		} else if h.Serial == first.Serial && !h.Revoked.Equal(first.Revoked) {
			t.Errorf("revoked again, the time moves from %v to %v", first.Revoked, h.Revoked)
		}
		der, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		if err := list.CheckSignatureFrom(r.Certificate()); err != nil {
			t.Error(err)
		}
		if want := min(i+1, 2); len(list.RevokedCertificateEntries) != want || list.Number.Int64() != int64(i+1) {
			t.Errorf("list %d has %d entries, want %d", list.Number, len(list.RevokedCertificateEntries), want)
		}
	}
	r.Close()
	for _, h := range open(t, dir, nil).Hosts() {
		if got, want := h.Valid(now), h.Serial == "c3"; got != want {
			t.Errorf("%s is valid: %t", h.Serial, got)
		}
	}
}

func TestAHostNameBelongsToOneMachineWhileItsCertificateIsValid(t *testing.T) {
	t.Parallel()
	now := time.Now()
	r := &Root{issued: []Host{
		{Serial: "1", Hostname: "web", EKSHA256: "one", NotAfter: now.Add(year)},
		{Serial: "2", Hostname: "old", EKSHA256: "one", NotAfter: now.Add(-time.Hour)},
		{Serial: "3", Hostname: "gone", EKSHA256: "one", NotAfter: now.Add(year), Revoked: now.Add(-time.Hour)},
	}}
	for hostname, taken := range map[string]bool{"web": true, "old": false, "gone": false, "new": false} {
		if got := r.namesake(Host{Hostname: hostname, EKSHA256: "two"}, now) != nil; got != taken {
			t.Errorf("%s is taken: %t", hostname, got)
		}
	}
	if r.namesake(Host{Hostname: "web", EKSHA256: "one"}, now) != nil {
		t.Error("a machine cannot be enrolled again by its own name")
	}
	if r.namesake(Host{Hostname: "web", EKSHA256: "two", Agent: true}, now) != nil {
		t.Error("the name of a CA is taken for an agent's")
	}
}

func TestRefusedRequestIsNotSaved(t *testing.T) {
	t.Parallel()
	r := open(t, founded(t), nil)
	a, err := r.Approve(t.Context(), []byte(`{"version": 1}`), appraisal.Terms{AnyNonce: true, Life: 24 * time.Hour, Now: time.Now()})
	if err == nil || a.Document != nil || len(r.Hosts()) != 0 {
		t.Errorf("got %v, %v, hosts %v", a, err, r.Hosts())
	}
}

func TestOnlyABootStateThatPassedIsApproved(t *testing.T) {
	t.Parallel()
	result := appraisal.Result{Passed: true}
	result.Bank, result.PCRs = "sha256", map[uint]string{7: strings.Repeat("ab", 32)}
	if values, err := BootValues(result, []uint{7}); err != nil || len(values[7]) != 32 {
		t.Errorf("got %v, %v", values, err)
	}
	if _, err := BootValues(result, []uint{0, 7}); err == nil || !strings.Contains(err.Error(), "no value of PCR 0") {
		t.Errorf("a PCR without a value: %v", err)
	}
	result.Passed = false
	if _, err := BootValues(result, []uint{7}); err == nil || !strings.Contains(err.Error(), "did not pass") {
		t.Errorf("a machine that did not pass: %v", err)
	}
}

func TestKeyInATPMSignsWithoutAPassphrase(t *testing.T) {
	t.Parallel()
	dir := founded(t)
	if _, err := os.Stat(dir + "/" + keyFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a key is in a file: %v", err)
	}
	r := open(t, dir, nil)
	if approval, err := r.ApproveBoot(t.Context(), boot); err != nil || len(approval) == 0 || r.KeyPlace() != KeyTPM {
		t.Errorf("%s: %v", r.KeyPlace(), err)
	}
}
