package credentialapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/vouchd/vouchd/credential"
)

// unitValue is what the file in the unit's credentials directory is to hold: the
// one field, the one that there is, or all of them in JSON.
func unitValue(g *credential.Grant, field string) ([]byte, error) {
	var value []byte
	switch i := slices.IndexFunc(g.Fields, func(f credential.Field) bool { return f.Name == field }); {
	case field != "" && i < 0:
		return nil, fmt.Errorf("%w: credential %s has no field %q", credential.ErrParameter, g.Lease.Credential, field)
	case field != "":
		value = slices.Clone(g.Fields[i].Value.Reveal())
	case len(g.Fields) == 1:
		value = slices.Clone(g.Fields[0].Value.Reveal())
	default:
		all := make(map[string]string, len(g.Fields))
		for _, f := range g.Fields {
			if !utf8.Valid(f.Value.Reveal()) {
				return nil, fmt.Errorf("field %s of %s is not text, so JSON cannot hold it; name one field, as %[2]s@FIELD", f.Name, g.Lease.Credential)
			}
			all[f.Name] = string(f.Value.Reveal())
		}
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(all); err != nil {
			return nil, err
		}
		value = b.Bytes()
	}
	if len(value) > maxCredential {
		clear(value)
		return nil, fmt.Errorf("credential %s exceeds the %d bytes that systemd accepts", g.Lease.Credential, maxCredential)
	}
	return value, nil
}
