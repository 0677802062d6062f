package agent

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/secret"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
)

// keepFile leases a credential into a file: once, or for as long as ctx and the
// process that reads it last.
func (l *leaser) keepFile(ctx context.Context, p *place, name, format, field string) error {
	req, err := l.request(name, credentialv1.Exposure_EXPOSURE_FILE)
	if err != nil {
		return err
	}
	if err := p.prepare(); err != nil {
		return err
	}
	defer p.close()
	put := func(lease *credentialv1.Lease, fields []secret.Field) error {
		defer wipe(fields)
		var b bytes.Buffer
		defer func() { clear(b.Bytes()[:b.Cap()]) }()
		if err := write(&b, format, field, lease, fields); err != nil {
			return err
		}
		return p.put(ctx, b.Bytes())
	}
	client, err := l.client()
	if err != nil {
		return err
	}
	defer client.Close()
	if !p.follow {
		within, cancel := context.WithTimeout(ctx, l.timeout)
		defer cancel()
		lease, fields, err := l.lasting(within, client, req)
		if err != nil {
			return err
		}
		return put(lease, fields)
	}
	return l.follow(ctx, client, req, p, put)
}

// follow puts one lease after the other into a file, and revokes them at the
// end.
func (l *leaser) follow(ctx context.Context, client *cli.Credentials, req *credentialv1.GrantCredentialRequest, p *place, put func(*credentialv1.Lease, []secret.Field) error) error {
	following, cancel := untilGone(ctx, p)
	defer cancel()
	var held []*credentialv1.Lease // the last two: the one before is in use yet
	defer func() {
		p.close() // before what is in it is of no use any more
		l.revokeAll(context.WithoutCancel(ctx), client, held)
	}()
	return again(following, p, func() error {
		return client.Watch(following, req, func(lease *credentialv1.Lease, fields []secret.Field) error {
			held = append(held[max(0, len(held)-1):], lease)
			first := p.wrote == nil
			if err := put(lease, fields); err != nil {
				return err
			}
			if first {
				return p.ready()
			}
			return nil
		})
	})
}

// untilGone ends with the process that reads the file, too.
func untilGone(ctx context.Context, p *place) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	gone := p.gone()
	go func() {
		select {
		case <-gone:
		case <-ctx.Done():
		}
		cancel()
	}()
	return ctx, cancel
}

// keepToken puts a JWT-SVID into a file: once, or for as long as ctx and the
// process that reads it last, the next at half of the last one's life.
func (f *fetcher) keepToken(ctx context.Context, p *place, audience []string, id string) error {
	if err := p.prepare(); err != nil {
		return err
	}
	defer p.close()
	fetch := func() (*jwtsvid.SVID, error) {
		svids, err := f.jwtSVIDs(ctx, audience, id)
		if err != nil {
			return nil, err
		}
		return svids[0], p.put(ctx, []byte(svids[0].Marshal()))
	}
	svid, err := fetch()
	if err != nil || !p.follow {
		return err
	}
	if err := p.ready(); err != nil {
		return err
	}
	following, cancel := untilGone(ctx, p)
	defer cancel()
	for {
		select {
		case <-time.After(time.Until(svid.Expiry) / 2):
		case <-following.Done():
			return nil
		}
		if err := again(following, p, func() (err error) {
			svid, err = fetch()
			return err
		}); err != nil {
			return err
		}
		if following.Err() != nil {
			return nil
		}
	}
}

// again does something until ctx ends, which is no error. It tries again if
// that may help and the file has had a value: an error at the beginning is for
// whoever started vouch to see.
func again(ctx context.Context, p *place, do func() error) error {
	const first, last = 250 * time.Millisecond, 30 * time.Second
	for delay := first; ; {
		began := time.Now()
		err := do()
		switch {
		case ctx.Err() != nil:
			return nil
		case p.wrote == nil || !cli.MayTryAgain(err):
			return err
		case time.Since(began) > last:
			delay = first
		}
		fmt.Fprintf(os.Stderr, "vouch: %v; trying again\n", err)
		select {
		case <-time.After(delay + rand.N(delay/4)):
		case <-ctx.Done():
			return nil
		}
		delay = min(2*delay, last)
	}
}
