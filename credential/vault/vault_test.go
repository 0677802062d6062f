package vault_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/credentialtest"
	"github.com/vouchd/vouchd/credential/vault"
)

const canary = credentialtest.Canary

var id = spiffeid.RequireFromString("spiffe://example.org/agent/research")

func newWorkload(t *testing.T) *credentialtest.Workload { return credentialtest.NewWorkload(t, id) }

func open(t *testing.T, f *fake, more string) credential.Broker {
	t.Helper()
	text := fmt.Sprintf(`
credentials:
  - name: api
    broker: vault
    parameters: [{name: host, pattern: "[a-z0-9./]+", default: db1}]
    vault: {address: %q, ca_file: %s, role: research, %s}
`, f.URL, f.caFile, more)
	return credentialtest.Broker(t, "vault", vault.Open, text)
}

const readonly = "path: database/creds/readonly"

func plan(t *testing.T, b credential.Broker, w *credentialtest.Workload, host string) (credential.Request, credential.Plan, error) {
	t.Helper()
	r := credential.Request{LeaseID: "LEASEIDLONGER", Holder: credential.Holder{ID: id, Identity: w}, Params: map[string]string{"host": host}, TTL: 5 * time.Minute}
	p, err := b.Plan(t.Context(), r)
	return r, p, err
}

func issue(t *testing.T, b credential.Broker, w *credentialtest.Workload) (credential.Plan, credential.Issued) {
	t.Helper()
	r, p, err := plan(t, b, w, "db1")
	if err != nil {
		t.Fatal(err)
	}
	i, err := b.Issue(t.Context(), r, p)
	if err != nil {
		t.Fatal(err)
	}
	return p, i
}

func TestWorkloadLogsInAsItselfAndItsLeaseEndsWithItsToken(t *testing.T) {
	t.Parallel()
	for _, auth := range []string{"jwt", "cert"} {
		t.Run(auth, func(t *testing.T) {
			t.Parallel()
			w := newWorkload(t)
			f := newFake(t, w)
			b := open(t, f, readonly+", auth: "+auth)
			p, i := issue(t, b, w)
			if !slices.Equal(f.logins, []string{auth}) {
				t.Errorf("logins %q", f.logins)
			}
			if len(i.Fields) != 2 || i.Fields[0].Name != "password" || string(i.Fields[0].Value.Reveal()) != canary || i.Fields[0].Public || !i.Fields[1].Public {
				t.Errorf("fields %v", i.Fields)
			}
			// The secret would live for longer. The fake's tokens live for a minute, and are
			// renewed for the time asked and another minute, but not those of certificates.
			least, most := 5*time.Minute, 7*time.Minute
			if auth == "cert" {
				least, most = 50*time.Second, time.Minute
			}
			if left := time.Until(i.NotAfter); left < least || left > most {
				t.Errorf("ends in %v, want with the token, between %v and %v", left, least, most)
			}
			if p.Handle.Name != i.Handle.Name || strings.Contains(p.Handle.Name, canary) || !slices.Equal(i.Scope, []string{"database/creds/readonly"}) {
				t.Errorf("handle %q, then %q; scope %q", p.Handle.Name, i.Handle.Name, i.Scope)
			}
			if _, err := b.Revoke(t.Context(), *i.Handle); err != nil {
				t.Fatal(err)
			}
			if tokens, leases := f.left(); tokens != 0 || leases != 0 {
				t.Errorf("%d tokens and %d leases are left", tokens, leases)
			}
		})
	}
}

func TestAnswerThatIsLostLeaksNothing(t *testing.T) {
	t.Parallel()
	w := newWorkload(t)
	f := newFake(t, w)
	b := open(t, f, readonly)
	p, _ := issue(t, b, w) // the daemon died before the answer: the plan is all there is
	if _, leases := f.left(); leases != 1 {
		t.Fatal("no lease was made")
	}
	if err := open(t, f, readonly).Recover(t.Context(), p.Handle); err != nil {
		t.Fatal(err)
	}
	if tokens, leases := f.left(); tokens != 0 || leases != 0 {
		t.Errorf("%d tokens and %d leases are left", tokens, leases)
	}
	r, p, err := plan(t, b, w, "db1") // it died before it asked
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Recover(t.Context(), p.Handle); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Issue(t.Context(), r, p); !errors.Is(err, credential.ErrRefused) {
		t.Errorf("a recovered plan was issued: %v", err)
	}
}

func TestRevokeWaitsForTheEngineWhereThePolicyAllows(t *testing.T) {
	t.Parallel()
	w := newWorkload(t)
	f := newFake(t, w)
	f.maySync = true
	b := open(t, f, readonly)
	_, i := issue(t, b, w)
	f.set(func(f *fake) { f.mayRevoke = false })
	_, err := b.Revoke(t.Context(), *i.Handle)
	if !errors.Is(err, credential.ErrRefused) || !strings.Contains(err.Error(), "auth/token/revoke-self") {
		t.Errorf("a token that may not end itself: %v", err)
	}
	if _, leases := f.left(); leases != 0 {
		t.Error("the lease was not revoked by itself")
	}
}

func TestTokenThatIsRefusedTwiceIsNotTakenForEnded(t *testing.T) {
	t.Parallel()
	w := newWorkload(t)
	f := newFake(t, w)
	b := open(t, f, readonly)
	p, i := issue(t, b, w)
	f.set(func(f *fake) { f.mayRevoke, f.mayLookUp = false, false }) // the policy default was taken away
	unknown := func(err error) {
		t.Helper()
		if !errors.Is(err, credential.ErrUpstream) || !strings.Contains(err.Error(), "unknown until it expires") {
			t.Errorf("got %v, want that it is unknown", err)
		}
	}
	_, err := b.Revoke(t.Context(), *i.Handle)
	unknown(err)
	unknown(b.Recover(t.Context(), p.Handle))
	if _, leases := f.left(); leases != 1 {
		t.Fatal("the login is gone, and the test shows nothing")
	}
	f.set(func(f *fake) { f.mayRevoke = true })
	if _, err := b.Revoke(t.Context(), *i.Handle); err != nil {
		t.Errorf("once the policy is back: %v", err)
	}
	_, err = b.Revoke(t.Context(), *i.Handle) // after a restart, whoever ended it
	unknown(err)
}

func TestTokenThatCannotBeLookedUpIsGivenNothing(t *testing.T) {
	t.Parallel()
	w := newWorkload(t)
	f := newFake(t, w)
	f.mayLookUp = false
	b := open(t, f, readonly)
	r, p, err := plan(t, b, w, "db1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Issue(t.Context(), r, p); !errors.Is(err, credential.ErrRefused) || !strings.Contains(err.Error(), "auth/token/lookup-self") {
		t.Errorf("got %v, want what to allow", err)
	}
	if _, leases := f.left(); leases != 0 {
		t.Error("a lease was made whose end nobody could tell")
	}
}

func TestRenewRenewsTheLeaseAndWhatItHangsOn(t *testing.T) {
	t.Parallel()
	w := newWorkload(t)
	f := newFake(t, w)
	b := open(t, f, readonly)
	_, i := issue(t, b, w)
	notAfter, err := b.Renew(t.Context(), *i.Handle, 30*time.Minute)
	if left := time.Until(notAfter); err != nil || left < 29*time.Minute || left > 31*time.Minute {
		t.Errorf("renewed for %v, %v", left, err)
	}
	for _, until := range f.tokens {
		if time.Until(until) < 30*time.Minute {
			t.Error("the token ends before its lease")
		}
	}
	f.set(func(f *fake) { f.unrenewable = true })
	if _, err := b.Renew(t.Context(), *i.Handle, 30*time.Minute); !errors.Is(err, credential.ErrRefused) {
		t.Errorf("a lease that cannot be renewed: %v", err)
	}
}

func TestSecretWithoutALeaseOnlyExpires(t *testing.T) {
	t.Parallel()
	w := newWorkload(t)
	f := newFake(t, w)
	b := open(t, f, `path: pki/issue/agent, leased: false, data: [{name: common_name, value: "{{host}}.example.org"}]`)
	if tr := b.Traits(); tr.Revocation != credential.ExpiryOnly || tr.Renews || !tr.ChoosesTTL {
		t.Errorf("traits %+v claim too much", tr)
	}
	_, i := issue(t, b, w)
	if left := time.Until(i.NotAfter); left < 29*time.Minute || left > 31*time.Minute {
		t.Errorf("ends in %v, want with the certificate", left)
	}
	if tokens, _ := f.left(); tokens != 0 {
		t.Error("a token that nothing hangs on is left")
	}
	leased := open(t, f, "path: database/creds/leaseless")
	r, p, err := plan(t, leased, w, "db1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leased.Issue(t.Context(), r, p); !errors.Is(err, credential.ErrUpstream) || !strings.Contains(err.Error(), "leased: false") {
		t.Errorf("a secret that claims no lease: %v", err)
	}
}

func TestStaticValueIsNotSaidToEnd(t *testing.T) {
	t.Parallel()
	w := newWorkload(t)
	f := newFake(t, w)
	for path, want := range map[string][]string{
		"secret/data/app": {"password", "port", "username"},
		"kv/app":          {"password"},
	} {
		b := open(t, f, "static: true, path: "+path)
		if tr := b.Traits(); tr.Revocation != credential.Unrevocable || tr.Renews || tr.ChoosesTTL {
			t.Errorf("%s: traits %+v claim too much", path, tr)
		}
		_, i := issue(t, b, w)
		var names []string
		for _, field := range i.Fields {
			names = append(names, field.Name)
			if field.Public {
				t.Errorf("%s: %s counts as public", path, field.Name)
			}
		}
		if !slices.Equal(names, want) || string(i.Fields[0].Value.Reveal()) != canary {
			t.Errorf("%s: fields %q", path, names)
		}
		if !i.NotAfter.IsZero() {
			t.Errorf("%s is said to end at %v", path, i.NotAfter)
		}
		if tokens, _ := f.left(); tokens != 0 {
			t.Errorf("%s: a token that nothing hangs on is left", path)
		}
	}
	for path, want := range map[string]error{
		"database/creds/readonly": credential.ErrUpstream, // made for this lease
		"secret/data/empty":       credential.ErrRefused,
	} {
		b := open(t, f, "static: true, path: "+path)
		r, p, err := plan(t, b, w, "db1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Issue(t.Context(), r, p); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
		if _, leases := f.left(); leases != 0 {
			t.Errorf("%s: %d leases are left", path, leases)
		}
	}
}

func TestPathsThatNothingEndsAreMeantOrRefused(t *testing.T) {
	t.Parallel()
	for more, want := range map[string]string{
		"path: kv/app":                                       "static: true",
		"path: secret/data/app":                              "static: true",
		"path: secret/data/app, static: true":                "",
		"path: app/creds, static: true":                      "",
		"path: app/creds, static: true, leased: true":        "leased does not go with static",
		"path: app/creds, static: true, leased: false":       "",
		"path: sys/raw, static: true":                        "holds no secret",
		"path: auth/token/create":                            "holds no secret",
		"path: cubbyhole/x, static: true":                    "holds no secret",
		`path: "{{engine}}/creds/x", parameters: on`:         "lets the caller choose the engine",
		`path: "database-{{engine}}/x", parameters: on`:      "lets the caller choose the engine",
		"path: x, static: true, data: [{name: a, value: b}]": "data does not go with static",
	} {
		dir := t.TempDir()
		more, parameters := strings.CutSuffix(more, ", parameters: on")
		text := fmt.Sprintf("credentials:\n  - {name: api, broker: vault, vault: {address: \"https://vault.internal\", role: r, %s}}\n", more)
		if parameters {
			text = strings.Replace(text, "broker:", "parameters: [{name: engine, one_of: [a]}], broker:", 1)
		}
		if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := credential.LoadDefinitions(dir, credential.Brokers{"vault": vault.Open}, true)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", more, err, want)
		}
	}
}

func TestServerRefusesAnotherTrustDomainsWorkload(t *testing.T) {
	t.Parallel()
	w := newWorkload(t)
	f := newFake(t, w)
	if _, _, err := plan(t, open(t, f, readonly), newWorkload(t), "db1"); !errors.Is(err, credential.ErrRefused) || strings.Contains(err.Error(), canary) {
		t.Errorf("logged in: %v", err)
	}
}

func TestTokenThatCannotBeRevokedIsNotUsed(t *testing.T) {
	t.Parallel()
	w := newWorkload(t)
	f := newFake(t, w)
	f.noAccessor = true
	if _, _, err := plan(t, open(t, f, readonly), w, "db1"); err == nil || !strings.Contains(err.Error(), "token_type") {
		t.Errorf("a batch token: %v", err)
	}
}

func TestCallersValueIsOneStepOfThePath(t *testing.T) {
	t.Parallel()
	w := newWorkload(t)
	f := newFake(t, w)
	b := open(t, f, "path: \"database/creds/{{host}}\"")
	for _, host := range []string{"..", "a/b", "../../sys/seal", ".a"} {
		r, p, err := plan(t, b, w, host)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Issue(t.Context(), r, p); !errors.Is(err, credential.ErrParameter) {
			t.Errorf("%q: %v", host, err)
		}
	}
}

func TestCallersValueIsOneElementOfAList(t *testing.T) {
	t.Parallel()
	w := newWorkload(t)
	f := newFake(t, w)
	b := open(t, f, `path: pki/issue/agent, leased: false, data: [{name: alt_names, value: "{{host}}.example.org"}]`)
	r, p, err := plan(t, b, w, "evil.test,db1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Issue(t.Context(), r, p); !errors.Is(err, credential.ErrParameter) {
		t.Errorf("two names for one: %v", err)
	}
}

func TestServerFaults(t *testing.T) {
	t.Parallel()
	w := newWorkload(t)
	f := newFake(t, w)
	b := open(t, f, readonly)
	_, i := issue(t, b, w)
	for name, fault := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"sealed":  func(w http.ResponseWriter, _ *http.Request) bool { refuse(w, 503); return true },
		"broken":  func(w http.ResponseWriter, _ *http.Request) bool { refuse(w, 500); return true },
		"garbage": func(w http.ResponseWriter, _ *http.Request) bool { io.WriteString(w, "<html>\xff"); return true },
		"an answer without end": func(w http.ResponseWriter, _ *http.Request) bool {
			io.WriteString(w, strings.Repeat(" ", 5<<20))
			return true
		},
		"a cut connection": func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) },
		"a redirect": func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Location", "https://elsewhere.invalid"+r.URL.Path)
			w.WriteHeader(307)
			return true
		},
	} {
		f.set(func(f *fake) { f.fault = fault })
		if _, _, err := plan(t, b, w, "db1"); !errors.Is(err, credential.ErrUpstream) || strings.Contains(err.Error(), canary) {
			t.Errorf("logging in, %s: %v", name, err)
		}
		if name == "garbage" || name == "an answer without end" {
			continue // of a revocation, only the status is read
		}
		if _, err := b.Revoke(t.Context(), *i.Handle); !errors.Is(err, credential.ErrUpstream) || strings.Contains(err.Error(), canary) {
			t.Errorf("revoking, %s: %v", name, err)
		}
	}
	f.set(func(f *fake) { f.fault = nil })
	if _, err := b.Revoke(t.Context(), *i.Handle); err != nil {
		t.Error(err)
	}
}

func TestServerWithTheWrongCertificateGetsNoJWTSVID(t *testing.T) {
	t.Parallel()
	w := newWorkload(t)
	f := newFake(t, w)
	f.caFile = filepath.Join(t.TempDir(), "none.pem")
	if _, _, err := plan(t, open(t, f, readonly), w, "db1"); !errors.Is(err, credential.ErrUpstream) {
		t.Errorf("without a certificate to trust: %v", err)
	}
	if len(f.logins) != 0 {
		t.Error("the JWT-SVID was sent all the same")
	}
}
