package enrol

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/vouchd/vouchd/attest/appraisal"
	"github.com/vouchd/vouchd/state"
)

// An Approval is what came of a host's request.
type Approval struct {
	Document []byte           // for the host; only its TPM can open it
	Host     Host             // the certificate in it
	Result   appraisal.Result // of the appraisal, also if the request was refused
}

// Approve appraises a host's request and, if it satisfies the terms, signs a
// certificate for the host. It has saved what it signed when it returns.
func (r *Root) Approve(ctx context.Context, request []byte, terms appraisal.Terms) (Approval, error) {
	return r.approve(ctx, Host{}, terms, func(a appraisal.Authority) ([]byte, *x509.Certificate, appraisal.Result, error) {
		return a.Approve(request, terms)
	})
}

// ApproveAgent is Approve for a certificate by which a host joins a SPIRE server, under a
// name that the administrator gives it.
func (r *Root) ApproveAgent(ctx context.Context, request []byte, name string, terms appraisal.Terms) (Approval, error) {
	return r.approve(ctx, Host{Hostname: name, Agent: true}, terms, func(a appraisal.Authority) ([]byte, *x509.Certificate, appraisal.Result, error) {
		return a.ApproveAgent(request, name, terms)
	})
}

// approve signs, and notes for whom. The host's name is its own word unless it is given.
func (r *Root) approve(ctx context.Context, h Host, terms appraisal.Terms, sign func(appraisal.Authority) ([]byte, *x509.Certificate, appraisal.Result, error)) (Approval, error) {
	authority, done, err := r.authority(ctx)
	if err != nil {
		return Approval{}, err
	}
	defer done()
	document, certificate, result, err := sign(authority)
	a := Approval{Result: result}
	if err != nil {
		return a, err
	}
	h.Hostname = cmp.Or(h.Hostname, result.Hostname)
	h.Serial, h.EKSHA256, h.AKName, h.Evidence = certificate.SerialNumber.Text(16), result.EKSHA256, result.AKName, result.EvidenceSHA256
	h.Approved, h.NotAfter = terms.Now.UTC().Truncate(time.Second), certificate.NotAfter
	if other := r.namesake(h, terms.Now); other != nil {
		return a, fmt.Errorf("approving %s: another machine is enrolled by that name (endorsement key %s); if this one replaces it: vouch authority revoke %s",
			h.Hostname, other.EKSHA256, other.Serial)
	}
	r.issued = append(r.issued, h)
	if err := r.saveIssued(); err != nil {
		return a, err
	}
	a.Document, a.Host = document, h
	return a, nil
}

// BootValues returns the values of PCRs in a result that passed.
func BootValues(result appraisal.Result, pcrs []uint) (map[uint][]byte, error) {
	if !result.Passed || result.Bank != "sha256" {
		return nil, errors.New("the machine did not pass, or has no SHA-256 PCRs; only a state that passes can be approved")
	}
	values := make(map[uint][]byte)
	for _, pcr := range pcrs {
		value, err := hex.DecodeString(result.PCRs[pcr])
		if err != nil || len(value) == 0 {
			return nil, fmt.Errorf("it has no value of PCR %d", pcr)
		}
		values[pcr] = value
	}
	return values, nil
}

// ApproveBoot signs that hosts whose keys are bound to this root may use them
// while their PCRs have these values.
func (r *Root) ApproveBoot(ctx context.Context, pcrs map[uint][]byte) ([]byte, error) {
	authority, done, err := r.authority(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return appraisal.ApproveBootState(authority.Signer, pcrs)
}

// Revoke revokes a host's certificate and signs a new list of all that ever were,
// whose path it returns. Revoking one again signs another list.
func (r *Root) Revoke(ctx context.Context, serial string, now time.Time) (Host, string, error) {
	h, err := r.host(serial)
	if err != nil {
		return Host{}, "", err
	}
	authority, done, err := r.authority(ctx)
	if err != nil {
		return Host{}, "", err
	}
	defer done()
	if h.Revoked.IsZero() {
		h.Revoked = now.UTC().Truncate(time.Second)
	}
	r.meta.Lists++
	if err := errors.Join(r.saveIssued(), r.saveMeta()); err != nil {
		return Host{}, "", err
	}
	var revoked []appraisal.Revoked
	for _, h := range r.issued {
		if serial, ok := h.serial(); ok && !h.Revoked.IsZero() {
			revoked = append(revoked, appraisal.Revoked{Serial: serial, At: h.Revoked})
		}
	}
	list, err := authority.RevocationList(revoked, r.meta.Lists, now, now.Add(appraisal.MaxCALife))
	if err != nil {
		return Host{}, "", err
	}
	file := r.dir.Path(revocationList)
	return *h, file, state.ReplaceFileDurably(file, list, state.Mode(0o644))
}
