package spire

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/vouchd/vouchd/identity/foreign"
	"github.com/vouchd/vouchd/identity/spire/spirev1"
)

// keptBundles are the bundles as the server sent them.
type keptBundles struct {
	Own     []byte            `json:"own"`
	Foreign map[string][]byte `json:"foreign"`
	First   string            `json:"first"` // digest over Options.Roots as the bundle came
}

// rootsDigest is over what the server is verified with the first time.
func (k *Keeper) rootsDigest() string {
	var all []byte
	for _, c := range k.o.Roots {
		all = append(all, c.Raw...)
	}
	return digest(all)
}

func (k *Keeper) saveBundles(own *bundle) error {
	raw, err := proto.Marshal(own.raw)
	if err != nil {
		return err
	}
	data, err := json.Marshal(keptBundles{raw, k.run.foreignRaw, k.rootsDigest()})
	if err != nil {
		return err
	}
	return k.vault.save(bundleFile, data)
}

// fetchBundle puts the server's bundle in force if it is another one. One that goes back is
// refused, unless an administrator has brought the roots of a server that was built anew.
func (k *Keeper) fetchBundle(ctx context.Context, conn *connection) error {
	raw, err := conn.bundle(ctx)
	if err != nil {
		return err
	}
	next, err := parseBundle(k.o.TrustDomain, raw)
	if err != nil {
		return fmt.Errorf("SPIRE server %s: %w", k.o.Server, err)
	}
	k.mu.Lock()
	old := k.bundle
	k.mu.Unlock()
	change := next.change(k.o.TrustDomain)
	var known []Authority
	if old != nil {
		switch before := old.change(k.o.TrustDomain); {
		case k.otherRoots && next.has(k.o.Roots): // it may be of another history
		case next.Sequence < old.Sequence:
			return fmt.Errorf("SPIRE server %s: its bundle goes from sequence %d back to %d; it was set back, or is another server: %s", k.o.Server, old.Sequence, next.Sequence, trustAnew)
		case next.Sequence == old.Sequence && next.Sequence > 0 && before.SHA256 != change.SHA256:
			return fmt.Errorf("SPIRE server %s: its bundle is another one, of the same sequence %d: %s", k.o.Server, old.Sequence, trustAnew)
		case before.SHA256 == change.SHA256 && next.Sequence == old.Sequence:
			return nil
		}
		known = old.authorities
	}
	added := slices.DeleteFunc(slices.Clone(next.authorities), func(a Authority) bool {
		return slices.ContainsFunc(known, func(b Authority) bool { return a.ID == b.ID && a.SHA256 == b.SHA256 })
	})
	if len(added) > 0 {
		if err := k.o.Recorder.Authorities(ctx, added); err != nil {
			return fmt.Errorf("recording the authorities of the SPIRE server's bundle: %w", err)
		}
	}
	if err := k.o.Recorder.Bundle(ctx, change); err != nil {
		return fmt.Errorf("recording the SPIRE server's bundle: %w", err)
	}
	if err := k.saveBundles(next); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.bundle, k.otherRoots = next, false
	close(k.changed)
	k.changed = make(chan struct{})
	return nil
}

// trustAnew is what to do about a server whose bundle is of another history.
const trustAnew = "see that it is the right one, then save what spire-server bundle show prints there as authority.spire.bundle_file and restart vouchd"

// fetchForeign asks for the bundles of the trust domains that entries federate with, each
// as often as its hint says. One that is missing or wrong takes nothing else along.
func (k *Keeper) fetchForeign(ctx context.Context, conn *connection) error {
	k.mu.Lock()
	want, own := k.entries.federated(), k.bundle
	have := maps.Clone(k.foreign)
	k.mu.Unlock()
	now := k.o.Now()
	changed := false
	for td := range want {
		if now.Before(k.run.foreignNext[td]) {
			continue
		}
		b, raw, err := conn.foreign(ctx, td)
		switch code := status.Code(err); {
		case code == codes.Unavailable || code == codes.DeadlineExceeded || code == codes.PermissionDenied:
			return err
		case err != nil:
			k.run.foreignNext[td] = now.Add(foreignMost)
			k.o.Logger.Warn("entries federate with a trust domain whose bundle the SPIRE server does not give", "trust_domain", td.Name(), "err", err)
			continue
		}
		k.run.foreignNext[td] = now.Add(min(max(time.Duration(raw.RefreshHint)*time.Second, syncEvery), foreignMost))
		if old := have[td]; old != nil && (old.Digest == b.Digest || b.Sequence < old.Sequence) {
			continue
		}
		if err := k.o.Recorder.Bundle(ctx, foreignChange(b)); err != nil {
			return fmt.Errorf("recording the bundle of %s: %w", td.Name(), err)
		}
		kept, err := proto.Marshal(raw)
		if err != nil {
			return err
		}
		have[td], k.run.foreignRaw[td.Name()], changed = b, kept, true
	}
	for td := range have {
		if !want[td] {
			delete(have, td)
			delete(k.run.foreignNext, td)
			delete(k.run.foreignRaw, td.Name())
			changed = true
		}
	}
	if !changed {
		return nil
	}
	if err := k.saveBundles(own); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.foreign = have
	close(k.foreignChanged)
	k.foreignChanged = make(chan struct{})
	return nil
}

// foreignMost is how long a bundle of another trust domain goes without being asked for.
const foreignMost = 5 * time.Minute

func foreignChange(b *foreign.Bundle) BundleChange {
	c := BundleChange{TrustDomain: b.TrustDomain.Name(), Sequence: b.Sequence, SHA256: fmt.Sprintf("%x", b.Digest)}
	for _, root := range b.Roots {
		c.X509 = append(c.X509, authorityID(root))
	}
	for kid := range b.JWT.JWTAuthorities() {
		c.Keys = append(c.Keys, keyID(kid))
	}
	for kid := range b.WIT.WITAuthorities() {
		c.Keys = append(c.Keys, keyID(kid))
	}
	slices.Sort(c.X509)
	slices.Sort(c.Keys)
	return c
}

// loadBundles puts in force the bundles that are kept.
func (k *Keeper) loadBundles() error {
	data := k.vault.load(bundleFile)
	if data == nil {
		return nil
	}
	var kept keptBundles
	if err := json.Unmarshal(data, &kept); err != nil {
		return err
	}
	raw := new(spirev1.Bundle)
	if err := proto.Unmarshal(kept.Own, raw); err != nil {
		return err
	}
	own, err := parseBundle(k.o.TrustDomain, raw)
	if err != nil {
		return err
	}
	for name, b := range kept.Foreign {
		raw := new(spirev1.Bundle)
		td, err := spiffeid.TrustDomainFromString(name)
		if err == nil {
			err = proto.Unmarshal(b, raw)
		}
		if err != nil {
			return err
		}
		other, err := parseForeign(td, raw)
		if err != nil {
			return err
		}
		k.foreign[td], k.run.foreignRaw[name] = other, b
	}
	k.bundle, k.otherRoots = own, kept.First != k.rootsDigest()
	return nil
}
