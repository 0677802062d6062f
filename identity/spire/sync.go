package spire

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	"github.com/vouchd/vouchd/identity/spire/spirev1"
)

const keepEvery = time.Minute // how often the time of the last sync is kept

// syncEntries puts the server's entries in force. Just after an attestation a server says
// that there are none, until its cache knows the agent. That is not believed until it was
// said for a while, and a sync later than the attestation.
func (k *Keeper) syncEntries(ctx context.Context, conn *connection) (known bool, err error) {
	k.mu.Lock()
	old, never := k.entries, k.state.LastSync.IsZero()
	k.mu.Unlock()
	byID, err := conn.sync(ctx, old.byID)
	if err != nil {
		return false, err
	}
	now := k.o.Now()
	if len(byID) > 0 {
		k.run.emptySince = time.Time{}
	} else if never || len(old.byID) > 0 {
		if k.run.emptySince.IsZero() {
			k.run.emptySince = now
		}
		if now.Sub(later(k.run.emptySince, k.run.attested)).Abs() < settle {
			return false, nil
		}
	}
	maps.DeleteFunc(byID, ended(now))
	if !never && old.hold(byID) {
		return true, errors.Join(k.keepEntries(old), k.synced(now))
	}
	return true, k.putInForce(ctx, old, newEntries(k.o.TrustDomain, byID), now)
}

// putInForce replaces the entries. They are kept first, lest one that is gone be there again
// after a crash; but if that fails, nobody has what is gone for that reason.
func (k *Keeper) putInForce(ctx context.Context, old, next *entries, now time.Time) error {
	if err := k.o.Recorder.Entries(ctx, next.change(old)); err != nil {
		return fmt.Errorf("recording the SPIRE server's entries: %w", err)
	}
	k.run.unkept = true
	maps.DeleteFunc(k.run.refused, func(id string, _ retry) bool { // one that was changed may be signed for now
		return next.byID[id] == nil || old.byID[id] == nil || !same(old.byID[id], next.byID[id])
	})
	err := errors.Join(k.vault.removeSVIDs(old, next), k.keepEntries(next))
	k.mu.Lock()
	k.entries, k.state.LastSync = next, now
	maps.DeleteFunc(k.x509, func(id string, _ *held) bool { return next.byID[id] == nil })
	maps.DeleteFunc(k.jwt, func(_ string, h *heldJWT) bool { return next.byID[h.entry] == nil })
	maps.DeleteFunc(k.wit, func(id string, _ *heldWIT) bool { return next.byID[id] == nil })
	k.mu.Unlock()
	k.o.Apply(next.list, next.digest)
	return errors.Join(err, k.synced(now))
}

// keepEntries keeps the entries, unless they are kept already.
func (k *Keeper) keepEntries(es *entries) error {
	if !k.run.unkept {
		return nil
	}
	err := k.vault.saveEntries(es)
	k.run.unkept = err != nil
	return err
}

// removeSVIDs removes what is kept of entries that are gone.
func (v *vault) removeSVIDs(old, next *entries) (failed error) {
	for id := range old.byID {
		if next.byID[id] == nil {
			failed = errors.Join(failed, v.remove(svidFile(id)))
		}
	}
	return failed
}

// shards is in how many files the entries are kept: one that changes does not have all of
// them written again.
const shards = 32

func shardOf(entry string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(entry))
	return h.Sum32() % shards
}

func shardFile(n uint32) string { return fmt.Sprintf("%s%02x", entriesPrefix, n) }

// saveEntries keeps the entries, in the form in which the server sends them.
func (v *vault) saveEntries(es *entries) error {
	var parts [shards]spirev1.GetAuthorizedEntriesResponse
	for _, id := range slices.Sorted(maps.Keys(es.byID)) {
		part := &parts[shardOf(id)]
		part.Entries = append(part.Entries, es.byID[id])
	}
	for n := range parts {
		data, err := proto.MarshalOptions{Deterministic: true}.Marshal(&parts[n])
		if err != nil {
			return err
		}
		sum := sha256.Sum256(data)
		if v.shards[n] == sum {
			continue
		}
		if len(data) == 0 {
			err = v.remove(shardFile(uint32(n)))
		} else {
			err = v.save(shardFile(uint32(n)), data)
		}
		if err != nil {
			return err
		}
		v.shards[n] = sum
	}
	return nil
}

// loadEntries returns the entries that are kept.
func (v *vault) loadEntries() map[string]*spirev1.Entry {
	byID := make(map[string]*spirev1.Entry)
	for n := range uint32(shards) {
		data := v.load(shardFile(n))
		var part spirev1.GetAuthorizedEntriesResponse
		err := proto.Unmarshal(data, &part)
		if err == nil {
			err = take(byID, part.Entries)
		}
		if err != nil {
			v.useless(shardFile(n), err)
			continue
		}
		v.shards[n] = sha256.Sum256(data)
	}
	return byID
}

// synced notes that the entries are those of now, and keeps that now and then.
func (k *Keeper) synced(now time.Time) error {
	k.mu.Lock()
	k.state.LastSync = now
	k.mu.Unlock()
	if now.Sub(k.run.keptSync).Abs() < keepEvery {
		return nil
	}
	data, err := now.MarshalBinary()
	if err == nil {
		err = k.vault.save(syncFile, data)
	}
	if err == nil {
		k.run.keptSync = now
	}
	return err
}

// load puts in force what is kept.
func (k *Keeper) load() {
	k.run = running{foreignNext: make(map[spiffeid.TrustDomain]time.Time), foreignRaw: make(map[string][]byte), refused: make(map[string]retry)}
	now := k.o.Now()
	if err := k.loadBundles(); err != nil {
		k.vault.useless(bundleFile, err)
		k.bundle = nil
	}
	if k.bundle == nil {
		return // nothing can be verified
	}
	k.agent = k.vault.loadAgent(&k.o, k.bundle)
	data := k.vault.load(syncFile)
	if data == nil {
		return
	}
	if err := k.state.LastSync.UnmarshalBinary(data); err != nil {
		k.vault.useless(syncFile, err)
		return
	}
	k.state.LastSync = earlier(k.state.LastSync, now) // the clock may have been set back
	byID := k.vault.loadEntries()
	maps.DeleteFunc(byID, ended(now))
	k.entries = newEntries(k.o.TrustDomain, byID)
	for _, e := range k.entries.list {
		if h := k.vault.loadSVID(k.o.TrustDomain, byID[e.Server], k.bundle, now); h != nil {
			k.x509[e.Server] = h
		}
	}
	k.o.Apply(k.entries.list, k.entries.digest)
}
