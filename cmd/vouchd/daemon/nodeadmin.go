package daemon

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"path/filepath"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/workloadapi/admin"
)

// nodeAdmin is what administrators may ask of the TPM.
func (d *daemon) nodeAdmin() *admin.Node {
	return &admin.Node{
		Evidence: d.evidence,
		Activate: d.activate,
		Attest:   d.attest,
		Request:  d.request,
		Install:  d.install,
		Reseal:   d.reseal,
	}
}

// bundleAdmin is what administrators publish.
func (d *daemon) bundleAdmin() *admin.Bundles {
	return &admin.Bundles{
		TrustDomain: d.config.TrustDomain.Name(), JWTIssuer: d.config.Authority.JWTIssuer, Bundle: d.authority.Bundle,
	}
}

// asked records what an administrator asks for, before it is done.
func (d *daemon) asked(ctx context.Context, by admin.Asker, what string) error {
	return d.log.Append(ctx, audit.Record{
		Event: audit.EventAdmin, Outcome: audit.Success, Reason: what,
		Workload: &audit.Workload{PID: by.PID, UID: by.UID, GID: by.GID},
	})
}

func (d *daemon) evidence(ctx context.Context, by admin.Asker, nonce []byte) (json.RawMessage, error) {
	if err := d.asked(ctx, by, "evidence for a verifier"); err != nil {
		return nil, err
	}
	from, err := d.sources()
	if err != nil {
		return nil, err
	}
	return d.node.Evidence(ctx, nonce, from)
}

func (d *daemon) activate(ctx context.Context, by admin.Asker, challenge []byte) (json.RawMessage, error) {
	if err := d.asked(ctx, by, "the answer to a verifier's challenge"); err != nil {
		return nil, err
	}
	return d.node.Activate(ctx, challenge)
}

// attest returns the result of a machine that does not pass too: whoever asks
// wants to know why.
func (d *daemon) attest(ctx context.Context) (json.RawMessage, error) {
	r, err := d.appraiser.appraise(ctx, "an administrator asked for it")
	if err != nil {
		return nil, err
	}
	return json.Marshal(r)
}

func (d *daemon) request(ctx context.Context, by admin.Asker, nonce []byte) (json.RawMessage, error) {
	if err := d.asked(ctx, by, "a request for enrolment"); err != nil {
		return nil, err
	}
	from, err := d.sources()
	if err != nil {
		return nil, err
	}
	return d.node.Request(ctx, d.config.TrustDomain, nonce, from)
}

// reseal adds an approved boot state for the keys that are bound to them.
func (d *daemon) reseal(ctx context.Context, by admin.Asker, approval []byte) error {
	if err := d.asked(ctx, by, "an approved boot state added"); err != nil {
		return err
	}
	return d.node.Reseal(approval)
}

// readCertificates reads the certificates in a directory's *.pem files; a
// missing directory has none.
func readCertificates(dir string) (chain [][]byte, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.pem"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		rest, err := config.ReadFile(file)
		if err != nil {
			return nil, err
		}
		found := false
		for {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			if block.Type != "CERTIFICATE" {
				return nil, fmt.Errorf("%s holds a %.40q; want certificates only", file, block.Type)
			}
			found = true
			chain = append(chain, block.Bytes)
		}
		if !found {
			return nil, fmt.Errorf("%s holds no certificate in PEM; replace it or move it away", file)
		}
	}
	return chain, nil
}
