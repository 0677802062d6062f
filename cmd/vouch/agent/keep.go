package agent

import (
	"bytes"
	"context"
	"time"

	"github.com/vouchd/vouchd/cmd/vouch/deliver"
	"github.com/vouchd/vouchd/secret"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
)

// keepFile leases a credential into a file: once, or for as long as ctx and the
// process that reads it last.
func (l *leaser) keepFile(ctx context.Context, p *deliver.Place, name, format, field string) error {
	req, err := l.request(name, credentialv1.Exposure_EXPOSURE_FILE)
	if err != nil {
		return err
	}
	if err := p.Prepare(); err != nil {
		return err
	}
	defer p.Close()
	encode := func(lease *credentialv1.Lease, fields []secret.Field, put func([]byte) error) error {
		defer wipe(fields)
		var b bytes.Buffer
		defer func() { clear(b.Bytes()[:b.Cap()]) }()
		if err := write(&b, format, field, lease, fields); err != nil {
			return err
		}
		return put(b.Bytes())
	}
	client, err := l.client()
	if err != nil {
		return err
	}
	defer client.Close()
	if !p.Follow {
		within, cancel := context.WithTimeout(ctx, l.timeout)
		defer cancel()
		lease, fields, err := l.lasting(within, client, req)
		if err != nil {
			return err
		}
		return encode(lease, fields, func(value []byte) error { return p.Put(ctx, value) })
	}
	var held []*credentialv1.Lease // the last two: the one before is still in use
	return deliver.Values(ctx, p, func(ctx context.Context, put func([]byte) error) error {
		return client.Watch(ctx, req, func(lease *credentialv1.Lease, fields []secret.Field) error {
			held = append(held[max(0, len(held)-1):], lease)
			return encode(lease, fields, put)
		})
	}, func() { l.revokeAll(context.WithoutCancel(ctx), client, held) })
}

// keepToken keeps a JWT-SVID in a file.
func (f *fetcher) keepToken(ctx context.Context, p *deliver.Place, audience []string, id string) error {
	return deliver.Token(ctx, p, func(ctx context.Context) ([]byte, time.Time, error) {
		svids, err := f.jwtSVIDs(ctx, audience, id)
		if err != nil {
			return nil, time.Time{}, err
		}
		return []byte(svids[0].Marshal()), svids[0].Expiry, nil
	})
}
