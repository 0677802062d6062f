package daemon

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vouchd/vouchd/attest/node"
	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/state"
	"github.com/vouchd/vouchd/workloadapi/admin"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// A machine is the state directory and the TPM, with the keys in both.
type machine struct {
	config   *config.Config
	measured *os.File // systemd's log; may be nil
	state    *state.Dir
	tpm      *node.TPM
	node     *node.Node
}

func openMachine(ctx context.Context, c *config.Config, measured *os.File) (*machine, error) {
	m := &machine{config: c, measured: measured}
	if err := m.open(ctx); err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
}

func (m *machine) open(ctx context.Context) (err error) {
	if m.state, err = state.Open(m.config.StateDir); err != nil {
		return err
	}
	if m.tpm, err = node.Open(ctx, m.config.TPM); err != nil {
		return err
	}
	m.node, err = node.Load(ctx, m.tpm, m.state)
	return err
}

func (m *machine) close() error {
	var errs []error
	if m.tpm != nil {
		errs = append(errs, m.tpm.Close())
	}
	if m.state != nil {
		errs = append(errs, m.state.Close())
	}
	return errors.Join(errs...)
}

func (m *machine) report(st *view.Status) {
	st.TPM = view.TPMStatus{
		Address:       m.tpm.Address(),
		EKSHA256:      m.node.EKSHA256(),
		AKName:        m.node.AKName(),
		EKCertificate: m.node.HasEKCertificate(),
		Ignored:       append([]string{}, m.node.Ignored()...),
	}
	st.Node.Bound = m.node.Bound()
}

// sources returns where evidence is made from.
func (m *machine) sources() (node.Sources, error) {
	from := node.LinuxSources()
	from.UserspaceLogFile = m.measured
	var err error
	from.Chain, err = readCertificates(m.config.Node.EKChainDir)
	return from, err
}

// nodeAdmin is what administrators may ask of the TPM. Each is recorded before it
// is done.
func (d *daemon) nodeAdmin() *admin.Node {
	m := d.machine
	return &admin.Node{
		Evidence: func(ctx context.Context, by admin.Asker, nonce []byte) (json.RawMessage, error) {
			if err := d.log.asked(ctx, by, "evidence for a verifier"); err != nil {
				return nil, err
			}
			from, err := m.sources()
			if err != nil {
				return nil, err
			}
			return m.node.Evidence(ctx, nonce, from)
		},
		Activate: func(ctx context.Context, by admin.Asker, challenge []byte) (json.RawMessage, error) {
			if err := d.log.asked(ctx, by, "the answer to a verifier's challenge"); err != nil {
				return nil, err
			}
			return m.node.Activate(ctx, challenge)
		},
		// The result of a machine that does not pass is an answer too: it says why.
		Attest: func(ctx context.Context) (json.RawMessage, error) {
			r, err := d.appraiser.appraise(ctx, "an administrator asked for it")
			if err != nil {
				return nil, err
			}
			return json.Marshal(r)
		},
		Request: func(ctx context.Context, by admin.Asker, nonce []byte) (json.RawMessage, error) {
			if err := d.log.asked(ctx, by, "a request for enrolment"); err != nil {
				return nil, err
			}
			from, err := m.sources()
			if err != nil {
				return nil, err
			}
			return m.node.Request(ctx, m.config.TrustDomain, nonce, from)
		},
		Agent: func(ctx context.Context, by admin.Asker, nonce []byte) (json.RawMessage, error) {
			if err := d.log.asked(ctx, by, "a request to join a SPIRE server"); err != nil {
				return nil, err
			}
			from, err := m.sources()
			if err != nil {
				return nil, err
			}
			return m.node.AgentRequest(ctx, m.config.TrustDomain, nonce, from)
		},
		Install: d.enrolment.install,
		// An approved boot state is added for the keys that are bound to them.
		Reseal: func(ctx context.Context, by admin.Asker, approval []byte) error {
			if err := d.log.asked(ctx, by, "an approved boot state added"); err != nil {
				return err
			}
			return m.node.Reseal(approval)
		},
	}
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
				return nil, fmt.Errorf("%s contains a %.40q; want certificates only", file, block.Type)
			}
			found = true
			chain = append(chain, block.Bytes)
		}
		if !found {
			return nil, fmt.Errorf("%s contains no PEM certificate; replace it or move it away", file)
		}
	}
	return chain, nil
}
