package view

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"net/url"
	"strconv"
	"time"
)

// A SecretsStatus says how the sealed secrets are.
type SecretsStatus struct {
	Count int    `json:"count"`
	Due   int    `json:"due"`             // of them, those that should have been rotated by now
	Error string `json:"error,omitempty"` // why none can be opened
}

// A Secret is a sealed secret as it is listed: all but its value.
type Secret struct {
	Name     string    `json:"name"`
	Revision uint64    `json:"revision"`
	Bytes    int       `json:"bytes"`
	Created  time.Time `json:"created"`
	Sealed   time.Time `json:"sealed"` // when this value was
	RotateBy time.Time `json:"rotate_by"`
	Due      bool      `json:"due"`
	Broad    bool      `json:"broad,omitempty"`
	Bound    bool      `json:"bound,omitempty"` // to approved boot states
	LastUse  time.Time `json:"last_use,omitzero"`
	Uses     uint64    `json:"uses"`
	UsedBy   []string  `json:"used_by"` // SPIFFE IDs, those that used it last
}

// An Undo is what undoes a change. It holds secrets.
type Undo struct {
	Value []byte `json:"value"`
}

// SecretOptions are those of a secret that is sealed or rotated.
type SecretOptions struct {
	RotateAfter time.Duration // 0: 90 days, or 30 for a broad one; 1 second to 10 years
	Broad       *bool
	Authority   *ecdsa.PublicKey // the root that approves the boot states it is bound to
	// Same makes it no error to seal the very value that is sealed already.
	Same bool
}

// Query carries the options in a request's query.
func (o SecretOptions) Query(name string) (url.Values, error) {
	q := url.Values{"name": {name}}
	if o.RotateAfter != 0 {
		q.Set("rotate_after", o.RotateAfter.String())
	}
	if o.Broad != nil {
		q.Set("broad", strconv.FormatBool(*o.Broad))
	}
	if o.Same {
		q.Set("same", "true")
	}
	if o.Authority != nil {
		der, err := x509.MarshalPKIXPublicKey(o.Authority)
		if err != nil {
			return nil, err
		}
		q.Set("authority", base64.RawURLEncoding.EncodeToString(der))
	}
	return q, nil
}

// ParseSecretOptions reads what Query wrote.
func ParseSecretOptions(q url.Values) (o SecretOptions, err error) {
	o.Same = q.Get("same") == "true"
	if text := q.Get("rotate_after"); text != "" {
		if o.RotateAfter, err = time.ParseDuration(text); err != nil {
			return o, err
		}
	}
	if text := q.Get("broad"); text != "" {
		broad, err := strconv.ParseBool(text)
		if err != nil {
			return o, err
		}
		o.Broad = &broad
	}
	if text := q.Get("authority"); text != "" {
		der, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil {
			return o, err
		}
		key, err := x509.ParsePKIXPublicKey(der)
		if err != nil {
			return o, err
		}
		var ok bool
		if o.Authority, ok = key.(*ecdsa.PublicKey); !ok {
			return o, errors.New("the root's key is not an ECDSA key")
		}
	}
	return o, nil
}
