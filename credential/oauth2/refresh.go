package oauth2

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/credential/endpoint"
	"github.com/vouchd/vouchd/secret"
)

// kept is a refresh token and the enrolment that it descends from.
type kept struct {
	Token    string `json:"token"`
	Enrolled []byte `json:"enrolled"` // SHA-256 of the token that the administrator put into the file
}

// refresh asks for an access token with the refresh token.
func (b *Broker) refresh(ctx context.Context, r credential.Request, form url.Values) (endpoint.Token, error) {
	// One refresh at a time, since each may use the token up.
	defer b.secrets.Lock(b.secretName())()
	current, err := b.current(ctx)
	if err != nil {
		return endpoint.Token{}, err
	}
	form.Set("refresh_token", current.Token)
	t, err := b.ask(ctx, r.Holder.Identity, form, b.now())
	if err != nil {
		return endpoint.Token{}, err
	}
	if t.Refresh.Len() == 0 || string(t.Refresh.Reveal()) == current.Token {
		return t, nil
	}
	current.Token = string(t.Refresh.Reveal())
	text, err := json.Marshal(current)
	if err != nil {
		return endpoint.Token{}, err
	}
	// From here on the old token may be worthless. Until the new one is on the
	// disk, the access token is not handed out. The caller's leaving must not
	// lose it.
	return t, b.secrets.Save(context.WithoutCancel(ctx), b.secretName(), secret.Of(text))
}

// current returns the refresh token that counts: the one that was kept, unless
// the administrator has enrolled another since.
func (b *Broker) current(ctx context.Context) (kept, error) {
	saved, err := b.secrets.Load(ctx, b.secretName())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return kept{}, err
	}
	var current kept
	if err == nil {
		if err := json.Unmarshal(saved.Reveal(), &current); err != nil {
			return kept{}, fmt.Errorf("the refresh token kept for %s is not one", b.settings.TokenURL.Value)
		}
	}
	enrolled, err := credential.ReadSecret(b.settings.RefreshTokenFile.Value)
	if errors.Is(err, fs.ErrNotExist) && current.Token != "" {
		return current, nil // removed after it was enrolled, as it may be
	}
	if err != nil {
		return kept{}, err
	}
	digest := sha256.Sum256(enrolled.Reveal())
	if current.Token != "" && string(digest[:]) == string(current.Enrolled) {
		return current, nil
	}
	current = kept{Token: string(enrolled.Reveal()), Enrolled: digest[:]}
	text, err := json.Marshal(current)
	if err != nil {
		return kept{}, err
	}
	return current, b.secrets.Save(ctx, b.secretName(), secret.Of(text))
}

// secretName is the same for the same client, server and file.
func (b *Broker) secretName() string {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q", b.settings.TokenURL.Value, b.settings.ClientID, b.settings.RefreshTokenFile.Value)
	return "refresh-" + hex.EncodeToString(h.Sum(nil)[:16])
}
