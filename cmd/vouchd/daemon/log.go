package daemon

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/packaging/version"
)

// openLog opens the attestation log and records the start, with what proves
// this machine's keys, anchored in the TPM.
func (d *daemon) openLog(ctx context.Context) error {
	key, err := d.loadLogKey(ctx)
	if err != nil {
		return err
	}
	public := key.Public().(ed25519.PublicKey)
	statement, err := d.node.Statement(ctx, public)
	if err != nil {
		return err
	}
	machine, err := appraisal.VerifyStatement(statement, public)
	if err != nil {
		return fmt.Errorf("verifying this machine's own statement: %w", err)
	}
	name := sha256.Sum256(public)
	d.log, err = audit.Open(d.state.Path("log"), audit.Options{
		Origin:      d.config.TrustDomain.Name() + "/" + hex.EncodeToString(name[:8]),
		Key:         key,
		TPM:         d.node,
		Logger:      d.slog,
		AnchorEvery: d.config.Log.AnchorEvery,
		MaxBytes:    int64(d.config.Log.MaxMiB) << 20,
		KeepFor:     d.config.Log.KeepFor,
	})
	if err != nil {
		return err
	}
	err = d.log.Append(ctx, audit.Record{
		Event:   audit.EventStart,
		Outcome: audit.Success,
		Node: &audit.Node{
			EKSHA256:  machine.EKSHA256,
			AKName:    machine.AKName,
			PCRSHA256: machine.PCRDigest,
			Resets:    machine.Resets,
			Statement: statement,
		},
		Config: &audit.Config{Version: version.String()},
	})
	if err == nil {
		err = d.log.Anchor(ctx)
	}
	if err != nil {
		return errors.Join(err, d.log.Close(ctx))
	}
	return nil
}

// loadLogKey unseals the key that signs the log's checkpoints, or makes one
// and seals it to this TPM.
func (d *daemon) loadLogKey(ctx context.Context) (ed25519.PrivateKey, error) {
	const file, format = "log-key", 1
	blob, _, err := d.state.Load(file, format)
	if errors.Is(err, fs.ErrNotExist) {
		return d.makeLogKey(ctx, file, format)
	}
	if err != nil {
		return nil, fmt.Errorf("loading the log key: %w", err)
	}
	seed, err := d.node.Unseal(ctx, file, blob)
	if err != nil {
		return nil, fmt.Errorf("unsealing the log key: %w", err)
	}
	if len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("unsealing the log key: %d bytes, want %d", len(seed), ed25519.SeedSize)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

func (d *daemon) makeLogKey(ctx context.Context, file string, format int) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	blob, err := d.node.Seal(ctx, file, key.Seed())
	if err != nil {
		return nil, fmt.Errorf("sealing the log key: %w", err)
	}
	return key, d.state.Save(file, format, blob)
}

// closeLog records the stop, anchors it and closes the log. cause is why the
// daemon stops, nil if it was told to.
func (d *daemon) closeLog(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	r := audit.Record{Event: audit.EventStop, Outcome: audit.Success}
	if cause != nil {
		r.Outcome, r.Reason = audit.Failed, cause.Error()
	}
	return errors.Join(d.log.Append(ctx, r), d.log.Close(ctx))
}

// announce records an authority key with a quote of the boot state it is made
// in, before it signs anything.
func (d *daemon) announce(ctx context.Context, k identity.Key) error {
	quote, err := d.node.Quote(ctx, sha256.Sum256(k.PublicKey))
	if err != nil {
		return err
	}
	event := audit.EventJWTKey
	if k.Certificate != nil {
		event = audit.EventIssuingCA
	}
	return d.log.Append(ctx, audit.Record{
		Event:   event,
		Outcome: audit.Success,
		Key: &audit.Key{
			KeyID:       k.ID,
			Certificate: k.Certificate,
			PublicKey:   k.PublicKey,
			NotBefore:   k.NotBefore,
			NotAfter:    k.NotAfter,
			Quote:       quote.Encoding,
		},
	})
}
