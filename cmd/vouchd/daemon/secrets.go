package daemon

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vouchd/vouchd/audit"
	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/sealed"
	"github.com/vouchd/vouchd/secret"
	"github.com/vouchd/vouchd/workloadapi/admin"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// secretAdmin is what administrators may do about sealed secrets.
func (l *leases) secretAdmin() *admin.Secrets {
	return &admin.Secrets{
		List: func() ([]sealed.Secret, error) { return l.secrets.List(), l.secrets.Err() },
		Seal: func(ctx context.Context, by admin.Asker, name string, value secret.Bytes, o sealed.Options) (sealed.Secret, error) {
			return l.secrets.Seal(ctx, name, value, o, l.recordSecret(ctx, audit.EventSecretSeal, by))
		},
		Rotate: func(ctx context.Context, by admin.Asker, name string, value secret.Bytes, o sealed.Options) (sealed.Secret, error) {
			s, err := l.secrets.Rotate(ctx, name, value, o, l.recordSecret(ctx, audit.EventSecretRotate, by))
			if err == nil {
				err = l.endLeasesOf(ctx, name, "its secret was rotated", proxied)
			}
			return s, err
		},
		Remove: func(ctx context.Context, by admin.Asker, name string) error {
			err := l.secrets.Remove(ctx, name, l.recordSecret(ctx, audit.EventSecretRemove, by))
			if err == nil {
				err = l.endLeasesOf(ctx, name, "its secret was removed", nil)
			}
			return err
		},
		Undo: func(ctx context.Context, by admin.Asker, name string) (secret.Bytes, error) {
			return l.secrets.Undo(ctx, name, l.recordSecret(ctx, audit.EventSecretUndo, by))
		},
	}
}

// recordSecret records a change that an administrator makes, before it is made.
func (l *leases) recordSecret(ctx context.Context, event audit.Event, by admin.Asker) sealed.Record {
	return func(s sealed.Secret) error {
		return l.log.Append(ctx, audit.Record{
			Event: event, Outcome: audit.Success,
			Workload:   asker(by),
			Credential: &audit.Credential{Name: s.Name, Kind: "sealed", Handle: s.Handle(), NotBefore: s.Sealed, NotAfter: s.RotateBy()},
		})
	}
}

// endLeasesOf ends the leases of a secret's former value, but for those of definitions
// that are spared; their holders have to ask for the next.
func (l *leases) endLeasesOf(ctx context.Context, name, reason string, spared func(*credential.Definition) bool) error {
	for _, def := range l.engine.Definitions().All() {
		if def.Traits.Secret != name || spared != nil && spared(def) {
			continue
		}
		if _, err := l.engine.RevokeWhere(ctx, credential.Where{Credential: def.Name}, reason); err != nil {
			return err
		}
	}
	return nil
}

// reportSecrets says which secrets are due to be rotated, and what keeps
// definitions from handing theirs out.
func (l *leases) reportSecrets(st *view.Status, problem problemf) {
	if err := l.secrets.Err(); err != nil {
		st.Secrets.Error = err.Error()
		problem("cannot open any secret: %v", err)
		return
	}
	now := time.Now()
	secrets := l.secrets.List()
	st.Secrets.Count = len(secrets)
	for _, s := range secrets {
		switch {
		case !now.After(s.RotateBy()):
		case strings.HasPrefix(s.Name, sealed.UndoPrefix):
			st.Reminders = append(st.Reminders, fmt.Sprintf("what vouch migrate replaced is still kept as %s; when nobody will undo it, run: vouch migrate undo --forget %[1]s", s.Name))
		default:
			st.Secrets.Due++
			st.Reminders = append(st.Reminders, fmt.Sprintf("secret %s is %s old and should be rotated after %d; replace it at its source, then run: vouch secret rotate %[1]s",
				s.Name, count(int(now.Sub(s.Sealed).Hours()/24), "day", "days"), int(s.RotateAfter.Hours()/24)))
		}
	}
	for _, def := range l.engine.Definitions().All() {
		name := def.Traits.Secret
		if name == "" {
			continue
		}
		if !slices.ContainsFunc(secrets, func(s sealed.Secret) bool { return s.Name == name }) {
			problem("credential %s needs the secret %s, which is not sealed; run: vouch secret seal %[2]s", def.Name, name)
		}
	}
}
