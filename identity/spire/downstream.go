package spire

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/vouchd/vouchd/identity"
	"github.com/vouchd/vouchd/identity/spire/spirev1"
)

// A Downstream has the server make this host a CA of the trust domain, so that it can go on
// issuing X509-SVIDs without the server. SPIRE constrains such a CA by nothing: whoever has
// its key can be anybody in the trust domain.
type Downstream struct {
	Key    crypto.Signer // of the CA: the node key, in the TPM
	Life   time.Duration // to ask for
	Record func(ctx context.Context, u identity.Upstream, failure error) error
	Apply  func(ctx context.Context, u identity.Upstream) error
}

// A CA is how it stands with the host's own.
type CA struct {
	Entry    string    // of the server's, by which the host has it
	NotAfter time.Time // zero: there is none
	Failure  error     // why there is none, or no newer one
}

const downstreamFile = "spire-downstream"

// errNoDownstream says how a host becomes one.
var errNoDownstream = errors.New("no entry of the server's makes this host a downstream CA: spire-server entry create -downstream -parentID of this agent, with a spiffeID of its own")

// keepDownstream has the CA renewed at half of its life. That it can't be had takes nothing
// else along.
func (k *Keeper) keepDownstream(ctx context.Context, conn *connection) {
	d, now := k.o.Downstream, k.o.Now()
	if d == nil || now.Before(k.run.downstream.next) {
		return
	}
	u, entry, err := k.certify(ctx, conn)
	if err == nil {
		if err = d.Record(ctx, u, nil); err == nil {
			err = errors.Join(k.saveDownstream(u, entry), d.Apply(ctx, u))
		}
	} else if told := err.Error(); told != k.run.downstreamTold {
		if d.Record(ctx, identity.Upstream{}, err) == nil {
			k.run.downstreamTold = told
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.state.CA.Failure = err
	if err != nil {
		k.run.downstream = k.run.downstream.failed(now)
		k.o.Logger.Warn("this host is no downstream CA of the SPIRE server", "err", err)
		return
	}
	c := u.Chain[0]
	k.run.downstream, k.run.downstreamTold = retry{next: halfOf(c, now)}, ""
	k.state.CA = CA{Entry: entry, NotAfter: c.NotAfter}
}

// halfOf is when half of a certificate's life from now is over.
func halfOf(c *x509.Certificate, now time.Time) time.Time { return now.Add(c.NotAfter.Sub(now) / 2) }

// certify has the server sign the CA, as the workload of the entry that allows it.
func (k *Keeper) certify(ctx context.Context, conn *connection) (u identity.Upstream, entry string, err error) {
	k.mu.Lock()
	all, b := k.entries.byID, k.bundle
	k.mu.Unlock()
	var e *spirev1.Entry
	for _, id := range slices.Sorted(maps.Keys(all)) {
		if all[id].Downstream {
			e = all[id]
			break
		}
	}
	if e == nil {
		return u, "", errNoDownstream
	}
	r, err := newRequest(e)
	if err != nil {
		return u, "", err
	}
	results, err := conn.sign(ctx, []*spirev1.NewX509SVIDParams{r.param})
	if err != nil {
		return u, "", err
	}
	h, s, err := r.take(k.o.TrustDomain, b, results[0], k.o.Now())
	if err != nil {
		return u, "", err
	}
	if err := k.o.Recorder.Signed(ctx, []Signing{s}); err != nil {
		return u, "", fmt.Errorf("recording what SPIRE server %s signed: %w", k.o.Server, err)
	}
	certs, err := x509.ParseCertificates(h.svid.Chain)
	if err != nil {
		return u, "", err
	}
	as := &tls.Certificate{PrivateKey: r.key, Leaf: certs[0]}
	for _, c := range certs {
		as.Certificate = append(as.Certificate, c.Raw)
	}
	own, err := k.dial(as)
	if err != nil {
		return u, "", err
	}
	defer own.Close()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{SignatureAlgorithm: x509.ECDSAWithSHA256}, k.o.Downstream.Key)
	if err != nil {
		return u, "", fmt.Errorf("asking for a downstream CA: %w", err)
	}
	chain, err := own.downstream(ctx, csr, k.o.Downstream.Life)
	if err != nil {
		return u, "", err
	}
	u, err = verifyDownstream(chain, k.o.Downstream.Key.Public(), b, k.o.Now())
	return u, e.Id, err
}

func (c *connection) downstream(ctx context.Context, csr []byte, life time.Duration) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := spirev1.NewSVIDClient(c).NewDownstreamX509CA(ctx, &spirev1.NewDownstreamX509CARequest{Csr: csr, PreferredTtl: int32(life / time.Second)})
	return r.GetCaCertChain(), c.failed("asking for a downstream CA", err)
}

// verifyDownstream returns a CA for the key that the bundle verifies now.
func verifyDownstream(chain [][]byte, key crypto.PublicKey, b *bundle, now time.Time) (u identity.Upstream, err error) {
	fail := func(err error) (identity.Upstream, error) {
		return identity.Upstream{}, fmt.Errorf("the downstream CA: %w", err)
	}
	if len(chain) == 0 || len(chain) > 10 {
		return fail(fmt.Errorf("it has a chain of %d certificates", len(chain)))
	}
	var certs []*x509.Certificate
	for _, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fail(err)
		}
		certs = append(certs, c)
	}
	own, ok := key.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !own.Equal(certs[0].PublicKey) || !certs[0].IsCA {
		return fail(errors.New("it is for another key than this host's, or is none"))
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range b.roots.X509Authorities() {
		roots.AddCert(c)
	}
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	verified, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return fail(fmt.Errorf("the bundle does not verify it: %w", err))
	}
	whole := verified[0]
	return identity.Upstream{Chain: whole[:len(whole)-1], Root: whole[len(whole)-1]}, nil
}

// A keptCA is one in the store.
type keptCA struct {
	Entry string   `json:"entry"`
	Chain [][]byte `json:"chain"`
}

func (k *Keeper) saveDownstream(u identity.Upstream, entry string) error {
	kept := keptCA{Entry: entry}
	for _, c := range u.Chain {
		kept.Chain = append(kept.Chain, c.Raw)
	}
	data, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	return k.vault.save(downstreamFile, data)
}

// Downstream returns the CA that is kept, if it is still one; zero: there is none.
func (k *Keeper) Downstream() identity.Upstream {
	k.mu.Lock()
	defer k.mu.Unlock()
	data := k.vault.load(downstreamFile)
	if data == nil || k.bundle == nil || k.o.Downstream == nil {
		return identity.Upstream{}
	}
	var kept keptCA
	err := json.Unmarshal(data, &kept)
	var u identity.Upstream
	if err == nil {
		u, err = verifyDownstream(kept.Chain, k.o.Downstream.Key.Public(), k.bundle, k.o.Now())
	}
	if err != nil {
		k.vault.useless(downstreamFile, err)
		return identity.Upstream{}
	}
	c := u.Chain[0]
	k.run.downstream.next, k.state.CA = halfOf(c, k.o.Now()), CA{Entry: kept.Entry, NotAfter: c.NotAfter}
	return u
}

// MayIssue returns nil if something may be handed out for a server's entry now, whoever
// issues it.
func (k *Keeper) MayIssue(entry string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, err := k.maySay(entry)
	return err
}
