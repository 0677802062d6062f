package foreign

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
)

// web is how most of these tests federate with the partner.
const web = "  - {trust_domain: partner.example, bundle_endpoint_url: \"https://partner.example/bundle\", profile: https_web}\n"

// a keeping is a keeper with what it stands on.
type keeping struct {
	*Keeper
	t         *testing.T
	store     *memory
	endpoints *endpoints
	log       *recorded
	stop      func()
}

// keep starts a keeper with these domains, in a bubble whose clock stands still while it
// has something to do.
func keep(t *testing.T, store *memory, e *endpoints, elements string) *keeping {
	t.Helper()
	log := &recorded{TB: t}
	k := &keeping{NewKeeper(Options{Store: store, Fetcher: e, Record: log.record}), t, store, e, log, nil}
	k.apply(elements)
	k.run()
	return k
}

func (k *keeping) run() {
	ctx, cancel := context.WithCancel(k.t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); k.Run(ctx) }()
	k.stop = func() { cancel(); <-ended }
	k.t.Cleanup(k.stop)
	synctest.Wait()
}

func (k *keeping) apply(elements string) {
	k.t.Helper()
	ds, err := parsed(elements)
	if err != nil {
		k.t.Fatal(err)
	}
	k.Apply(k.t.Context(), ds)
	synctest.Wait()
}

// pass lets time pass.
func pass(d time.Duration) {
	time.Sleep(d) // of the bubble's clock
	synctest.Wait()
}

// has fails unless exactly these roots of the partner are in force.
func (k *keeping) has(when string, roots ...root) {
	k.t.Helper()
	b := k.Bundle(partner)
	var in []*root
	for i := range roots {
		if b != nil && b.x509Bundle().HasX509Authority(roots[i].cert) {
			in = append(in, &roots[i])
		}
	}
	if b == nil && len(roots) > 0 || b != nil && (len(in) != len(roots) || len(b.Roots) != len(roots)) {
		k.t.Errorf("%s: the bundle in force is %v; want these %d roots", when, told(b), len(roots))
	}
}

// told is a bundle in few words.
func told(b *Bundle) string {
	if b == nil {
		return "none"
	}
	return fmt.Sprintf("number %d with %d roots", b.Sequence, len(b.Roots))
}

func (k *keeping) recorded(want ...string) {
	k.t.Helper()
	if got := k.log.lines(); !slices.Equal(got, want) {
		k.t.Errorf("recorded %q, want %q", got, want)
	}
}

func (k *keeping) status() Status {
	k.t.Helper()
	all := k.Status()
	if len(all) != 1 {
		k.t.Fatalf("status of %d domains", len(all))
	}
	return all[0]
}

func TestBundleIsFetchedAtOnceAndThenAtItsHint(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		hint     time.Duration
		from, to time.Duration
	}{
		{"none", 0, 270 * time.Second, 300 * time.Second},
		{"an hour", time.Hour, 54 * time.Minute, time.Hour},
		{"a second", time.Second, 54 * time.Second, time.Minute},
		{"a month", 30 * 24 * time.Hour, 21 * time.Hour, 24 * time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r, e := newRoot(partner), newEndpoints()
				e.serve(partner, documentOf(partner, 1, tt.hint, r))
				k := keep(t, newMemory(), e, web)
				k.has("at the start", r)
				pass(5 * 24 * time.Hour)
				times := e.times(partner)
				for i := 1; i < len(times); i++ {
					if d := times[i].Sub(times[i-1]); d < tt.from || d > tt.to {
						t.Fatalf("asked again after %v, want %v to %v", d, tt.from, tt.to)
					}
				}
				if len(times) < 4 {
					t.Errorf("asked %d times in five days", len(times))
				}
				k.recorded("took")
			})
		})
	}
}

func TestChangedBundleIsRecordedThenKeptThenServed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b, e := newRoot(partner), newRoot(partner), newEndpoints()
		e.serve(partner, documentOf(partner, 1, 0, a))
		k := keep(t, newMemory(), e, web)
		e.serve(partner, documentOf(partner, 2, 0, a, b))
		k.log.then = func(d Decision) {
			if len(k.Bundle(partner).Roots) != 1 {
				t.Error("the new bundle is served before it is recorded")
			}
			if kept := string(k.store.copied().files[fileOf(partner.Name())]); strings.Contains(kept, `\"spiffe_sequence\":2`) {
				t.Error("the new bundle is kept before it is recorded")
			}
			if d.Bundle.Sequence != 2 || len(d.Bundle.Roots) != 2 || d.Source != "https://partner.example/bundle" {
				t.Errorf("recorded is %+v", d)
			}
		}
		changed := k.Changed()
		pass(5 * time.Minute)
		k.has("after a change", a, b)
		select {
		case <-changed:
		default:
			t.Error("nobody was told")
		}
		changed = k.Changed()
		pass(time.Hour)
		select {
		case <-changed:
			t.Error("somebody was told of no change")
		default:
		}
		k.recorded("took", "took")
	})
}

func TestBundleThatCannotBeRecordedOrKeptIsNotServed(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(*keeping, bool){
		"recorded": func(k *keeping, on bool) {
			k.log.mu.Lock()
			defer k.log.mu.Unlock()
			if k.log.full = nil; on {
				k.log.full = errors.New("no space left")
			}
		},
		"kept": func(k *keeping, on bool) {
			k.store.mu.Lock()
			defer k.store.mu.Unlock()
			if k.store.fail = 0; on {
				k.store.fail = 1
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				a, b, e := newRoot(partner), newRoot(partner), newEndpoints()
				e.serve(partner, documentOf(partner, 1, 0, a))
				k := keep(t, newMemory(), e, web)
				fail(k, true)
				e.serve(partner, documentOf(partner, 2, 0, b))
				pass(5 * time.Minute)
				k.has("with a full disk", a)
				if s := k.status(); s.Err == nil {
					t.Error("status says that all is well")
				}
				fail(k, false)
				pass(5 * time.Minute)
				k.has("once there is space", b)
			})
		})
	}
}

// A process that is killed at any write leaves the old bundle or the new one, and its
// successor serves that without the network.
func TestKillAtAnyWriteLeavesOneBundleOrTheOther(t *testing.T) {
	t.Parallel()
	for write := 1; write <= 3; write++ {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("write %d, %v", write, after), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					a, b, e := newRoot(partner), newRoot(partner), newEndpoints()
					e.serve(partner, documentOf(partner, 1, 0, a))
					store := newMemory()
					store.fail, store.after = write, after
					k := keep(t, store, e, web)
					e.serve(partner, documentOf(partner, 2, 0, b))
					pass(5 * time.Minute)
					k.stop()
					e.fail(partner, nil, errUnreachable)
					next := keep(t, store.copied(), e, web)
					switch got := next.Bundle(partner); {
					case got == nil && write <= 2: // the first one was never whole
					case got != nil && (got.Sequence == 1 && got.Roots[0].Equal(a.cert) || got.Sequence == 2 && got.Roots[0].Equal(b.cert)):
					default:
						t.Errorf("the next process has %s", told(got))
					}
					if len(next.log.lines()) > 0 && next.log.lines()[0] == "took" {
						t.Error("a bundle that was recorded before is recorded again at the start")
					}
				})
			})
		}
	}
}

func TestRestartWithoutTheNetworkServesWhatWasInForceForDays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, e, store := newRoot(partner), newEndpoints(), newMemory()
		e.serve(partner, documentOf(partner, 7, 0, r))
		k := keep(t, store, e, web)
		fetched := k.status().Fetched
		k.stop()
		e.fail(partner, nil, fmt.Errorf("%w: no route to host", errUnreachable))
		k = &keeping{NewKeeper(Options{Store: store.copied(), Fetcher: e, Record: (&recorded{TB: t}).record}), t, store, e, k.log, nil}
		k.apply(web)
		k.has("before anything is asked", r)
		k.run()
		pass(time.Hour)
		if s := k.status(); s.Err == nil || s.Passing || !s.Fetched.Equal(fetched) || s.Next.IsZero() {
			t.Errorf("status after an hour is %+v", s)
		}
		pass(90 * 24 * time.Hour)
		k.has("after three months", r)
		e.serve(partner, documentOf(partner, 8, 0, newRoot(partner), r))
		pass(5 * time.Minute)
		if b := k.Bundle(partner); b.Sequence != 8 || k.status().Err != nil {
			t.Errorf("once the network is back %s is in force, %v", told(b), k.status().Err)
		}
	})
}

func TestEndpointThatNeverAnsweredIsAskedLessAndLessOften(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEndpoints()
		k := keep(t, newMemory(), e, web)
		if s := k.status(); s.Bundle != nil || s.Err == nil || !s.Passing {
			t.Errorf("at the start status is %+v", s)
		}
		pass(time.Hour)
		times := e.times(partner)
		if first := times[1].Sub(times[0]); first > 10*time.Second {
			t.Errorf("asked again after %v", first)
		}
		if n := len(times); n < 12 || n > 20 {
			t.Errorf("asked %d times in an hour", n)
		}
		k.recorded("absent")
		r := newRoot(partner)
		e.serve(partner, documentOf(partner, 1, 0, r))
		pass(5 * time.Minute)
		k.has("once it answers", r)
		e.fail(partner, nil, errUnreachable)
		pass(time.Hour)
		k.recorded("absent", "took", "absent")
	})
}

func TestBundleThatMayNotBeInForceIsRefusedAndToldOnce(t *testing.T) {
	t.Parallel()
	good := newRoot(partner)
	for _, tt := range []struct {
		name     string
		document []byte
		err      error
		says     string
	}{
		{"older", documentOf(partner, 4, 0, newRoot(partner)), nil, "its sequence is 4 after 5"},
		{"of another trust domain", documentOf(other, 6, 0, newRoot(other)), nil, "its root is of other.example"},
		{"HTML", []byte("<html>"), nil, "not a SPIFFE bundle"},
		{"too long", bytes.Repeat([]byte(" "), 10<<20), nil, "more than 262144 bytes"},
		{"with the wrong certificate", nil, fmt.Errorf("%w: x", errCertificate), "certificate is not the right one"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				e := newEndpoints()
				e.serve(partner, documentOf(partner, 5, 0, good))
				k := keep(t, newMemory(), e, web)
				e.fail(partner, tt.document, tt.err)
				pass(24 * time.Hour)
				k.has("all the while", good)
				k.recorded("took", "refused")
				s := k.status()
				if s.Err == nil || s.Passing || !strings.Contains(s.Err.Error(), tt.says) {
					t.Errorf("status says %v, want %q", s.Err, tt.says)
				}
				e.serve(partner, documentOf(partner, 5, 0, good))
				pass(5 * time.Minute)
				if err := k.status().Err; err != nil {
					t.Errorf("once it is well status says %v", err)
				}
				e.fail(partner, tt.document, tt.err)
				pass(5 * time.Minute)
				k.recorded("took", "refused", "refused")
			})
		})
	}
}

func TestSequenceDoesNotGoBackAcrossARestart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, e, store := newRoot(partner), newEndpoints(), newMemory()
		e.serve(partner, documentOf(partner, 9, 0, r))
		k := keep(t, store, e, web)
		e.serve(partner, documentOf(partner, 0, 0, r)) // one without a sequence is newer, and proves nothing
		pass(5 * time.Minute)
		k.stop()
		e.serve(partner, documentOf(partner, 8, 0, newRoot(partner)))
		k = keep(t, store.copied(), e, web)
		pass(time.Hour)
		k.has("after a restart", r)
		k.recorded("refused")
	})
}

func TestTrustDomainThatWithdrawsItsKeysIsTrustedNoMore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, e := newRoot(partner), newEndpoints()
		e.serve(partner, documentOf(partner, 1, 0, r))
		k := keep(t, newMemory(), e, web)
		e.serve(partner, documentOf(partner, 2, 0))
		pass(5 * time.Minute)
		k.has("after the withdrawal")
		if b := k.Bundle(partner); b == nil || !b.Empty() {
			t.Errorf("in force is %s", told(b))
		}
		if _, err := k.GetX509BundleForTrustDomain(partner); !errors.Is(err, errNoBundle) {
			t.Errorf("an endpoint would be verified with %v", err)
		}
		k.recorded("took", "took")
	})
}

// spiffe is a trust domain whose own endpoint is verified with its own bundle.
func spiffe(file string) string {
	return fmt.Sprintf("  - {trust_domain: partner.example, bundle_endpoint_url: \"https://partner.example/bundle\", profile: https_spiffe, endpoint_spiffe_id: %q, bundle_file: %q}\n", bundleID, file)
}

// provenBy has the partner's endpoint answer only if its present root is in the bundle that
// it is verified with, as TLS does.
func (e *endpoints) provenBy(t *testing.T, r root, document []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answer[partner] = func(_ context.Context, roots x509bundle.Source) ([]byte, error) {
		b, err := roots.GetX509BundleForTrustDomain(partner)
		if err != nil || !b.HasX509Authority(r.cert) {
			return nil, errCertificate
		}
		return document, nil
	}
}

// An endpoint may prove itself in a third trust domain, whose bundle comes from elsewhere
// (Federation §5.2.2.2).
func TestEndpointOfAThirdTrustDomainIsVerifiedWithThatOnesBundle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, third, e := newRoot(partner), newRoot(other), newEndpoints()
		e.answer[partner] = func(_ context.Context, roots x509bundle.Source) ([]byte, error) {
			b, err := roots.GetX509BundleForTrustDomain(other)
			if err != nil || !b.HasX509Authority(third.cert) {
				return nil, errCertificate
			}
			return documentOf(partner, 1, 0, r), nil
		}
		k := keep(t, newMemory(), e, strings.ReplaceAll(web, "partner", "other")+
			"  - {trust_domain: partner.example, bundle_endpoint_url: \"https://other.example/partner\", profile: https_spiffe, endpoint_spiffe_id: \"spiffe://other.example/bundles\"}\n")
		k.has("without anything to verify its endpoint with")
		if len(e.times(partner)) > 0 {
			t.Error("the endpoint was asked")
		}
		e.serve(other, documentOf(other, 1, 0, third))
		pass(5 * time.Minute)
		k.has("once there is", r)
	})
}

func bundleFile(t *testing.T, document []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "partner.example.bundle")
	rewrite(t, path, document)
	return path
}

func rewrite(t *testing.T, path string, document []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", document, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestEndpointIsVerifiedWithTheFileFirstAndThenWithTheLastBundle(t *testing.T) {
	t.Parallel()
	file := bundleFile(t, nil)
	synctest.Test(t, func(t *testing.T) {
		a, b, c, e, store := newRoot(partner), newRoot(partner), newRoot(partner), newEndpoints(), newMemory()
		rewrite(t, file, documentOf(partner, 1, 0, a))
		e.provenBy(t, a, documentOf(partner, 2, 0, a, b))
		k := keep(t, store, e, spiffe(file))
		k.has("after the first fetch", a, b)
		e.provenBy(t, b, documentOf(partner, 3, 0, b, c))
		pass(5 * time.Minute)
		k.has("after a rotation", b, c)
		k.stop()
		e.provenBy(t, c, documentOf(partner, 4, 0, c))
		k = keep(t, store.copied(), e, spiffe(file))
		k.has("after a restart, when the file is old", b, c)
		pass(5 * time.Minute)
		k.has("after the next rotation", c)
		e.provenBy(t, newRoot(partner), documentOf(partner, 5, 0, a))
		pass(5 * time.Minute)
		k.has("as somebody else answers", c)
		if err := k.status().Err; !strings.Contains(fmt.Sprint(err), "certificate") {
			t.Errorf("status says %v", err)
		}
	})
}

func TestNewBundleFileIsTheLatestWhateverItsSequence(t *testing.T) {
	t.Parallel()
	file := bundleFile(t, nil)
	synctest.Test(t, func(t *testing.T) {
		old, anew, e := newRoot(partner), newRoot(partner), newEndpoints()
		rewrite(t, file, documentOf(partner, 90, 0, old))
		e.provenBy(t, anew, documentOf(partner, 2, 0, anew)) // the trust domain was set up anew
		k := keep(t, newMemory(), e, spiffe(file))
		k.has("as its endpoint proves nothing", old)
		rewrite(t, file, documentOf(partner, 1, 0, anew))
		k.Look()
		synctest.Wait()
		k.has("once the file is replaced", anew)
		k.Ask()
		synctest.Wait()
		if b := k.Bundle(partner); b.Sequence != 2 {
			t.Errorf("in force is %s", told(b))
		}
		if err := k.status().Err; err != nil {
			t.Errorf("status says %v", err)
		}
		k.recorded("took", "refused", "took")
	})
}

func TestBundleFileThatIsWrongChangesNothing(t *testing.T) {
	t.Parallel()
	file := bundleFile(t, nil)
	synctest.Test(t, func(t *testing.T) {
		r, e := newRoot(partner), newEndpoints()
		static := fmt.Sprintf("  - {trust_domain: partner.example, bundle_file: %q}\n", file)
		rewrite(t, file, []byte(`{"keys": []}`))
		k := keep(t, newMemory(), e, static)
		if s := k.status(); s.Bundle != nil || !strings.Contains(fmt.Sprint(s.Err), "it holds no key") {
			t.Errorf("of an empty file status is %+v", s)
		}
		rewrite(t, file, documentOf(partner, 1, 0, r))
		pass(time.Minute)
		k.has("once the file is good", r)
		rewrite(t, file, documentOf(other, 2, 0, newRoot(other)))
		pass(time.Hour)
		k.has("with another trust domain's file", r)
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		pass(time.Hour)
		k.has("without a file", r)
		k.recorded("refused", "took", "refused")
		if len(e.times(partner)) > 0 {
			t.Error("an endpoint was asked")
		}
	})
}

func TestDomainThatIsRemovedIsForgottenAndBeginsAnew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, e, store := newRoot(partner), newEndpoints(), newMemory()
		e.serve(partner, documentOf(partner, 5, 0, r))
		k := keep(t, store, e, web)
		changed := k.Changed()
		k.apply("  []")
		k.Forget()
		select {
		case <-changed:
		default:
			t.Error("nobody was told that a bundle is gone")
		}
		k.has("once it is removed")
		if k.Bundle(partner) != nil {
			t.Error("a bundle is still there")
		}
		if _, kept := store.copied().files[fileOf(partner.Name())]; kept {
			t.Error("it is still kept")
		}
		asked := len(e.times(partner))
		pass(time.Hour)
		if len(e.times(partner)) != asked {
			t.Error("its endpoint is still asked")
		}
		again := newRoot(partner)
		e.serve(partner, documentOf(partner, 1, 0, again))
		k.apply(web)
		k.has("once it is back, with a sequence of its own", again)
	})
}

func TestDomainWhoseFileIsNotInForceIsNotForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, e, store := newRoot(partner), newEndpoints(), newMemory()
		e.serve(partner, documentOf(partner, 5, 0, r))
		k := keep(t, store, e, web)
		k.stop()
		e.fail(partner, nil, errUnreachable)
		k = keep(t, store.copied(), e, "  []") // started with a file that has a mistake
		if k.Bundle(partner) != nil {
			t.Error("it has a bundle although it is not in force")
		}
		k.apply(web)
		k.has("once the mistake is repaired", r)
	})
}

func TestOtherParametersKeepTheBundleAndAskAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, e := newRoot(partner), newEndpoints()
		e.serve(partner, documentOf(partner, 5, 0, r))
		k := keep(t, newMemory(), e, web)
		e.serve(partner, documentOf(partner, 4, 0, newRoot(partner)))
		k.apply(strings.Replace(web, "/bundle", "/elsewhere", 1))
		k.has("at another address", r)
		if n := len(e.times(partner)); n != 2 {
			t.Errorf("asked %d times", n)
		}
		k.recorded("took", "refused")
	})
}

func TestSlowEndpointDelaysNobodyElse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, e := newRoot(partner), newEndpoints()
		e.serve(partner, documentOf(partner, 1, 0, r))
		e.answer[other] = func(ctx context.Context, _ x509bundle.Source) ([]byte, error) {
			<-ctx.Done()
			return nil, errUnreachable
		}
		k := keep(t, newMemory(), e, strings.ReplaceAll(web, "partner", "other")+web)
		k.has("while another is waited for", r)
		k.apply(web) // and it can be removed meanwhile
		k.has("all the same", r)
	})
}

func TestDamagedStateIsNotTakenForNone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, e, store := newRoot(partner), newEndpoints(), newMemory()
		e.serve(partner, documentOf(partner, 5, 0, r))
		k := keep(t, store, e, web)
		k.stop()
		damaged := store.copied()
		damaged.files[fileOf(partner.Name())] = []byte("{")
		e.serve(partner, documentOf(partner, 1, 0, newRoot(partner)))
		k = keep(t, damaged, e, web)
		pass(time.Hour)
		if s := k.status(); s.Bundle != nil || s.Err == nil {
			t.Errorf("of a damaged file status is %+v", s)
		}
		if err := damaged.Remove(fileOf(partner.Name())); err != nil {
			t.Fatal(err)
		}
		pass(5 * time.Minute)
		if b := k.Bundle(partner); b == nil || b.Sequence != 1 {
			t.Errorf("once it is moved away %s is in force", told(b))
		}
	})
}

func TestRootsThatHaveAllExpiredAreTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEndpoints()
		e.serve(partner, documentOf(partner, 1, 0, newRootUntil(partner, time.Now().Add(time.Hour))))
		k := keep(t, newMemory(), e, web)
		if k.status().Outdated {
			t.Error("at the start they have expired")
		}
		pass(2 * time.Hour)
		if !k.status().Outdated {
			t.Error("nothing is said of roots that have expired")
		}
	})
}

func TestHostsThatStartTogetherDoNotAskTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, e, store := newRoot(partner), newEndpoints(), newMemory()
		e.serve(partner, documentOf(partner, 1, 0, r))
		keep(t, store, e, web).stop()
		start := time.Now()
		at := make(map[time.Duration]bool)
		for range 20 {
			each := newEndpoints()
			each.serve(partner, documentOf(partner, 1, 0, r))
			k := keep(t, store.copied(), each, web)
			defer k.stop()
			defer func() {
				d := each.times(partner)[0].Sub(start).Truncate(time.Second)
				if at[d] = true; d >= 30*time.Second {
					t.Errorf("asked after %v", d)
				}
			}()
		}
		pass(30 * time.Second)
		t.Cleanup(func() {
			if len(at) < 5 {
				t.Errorf("20 hosts ask at %v", at)
			}
		})
	})
}
