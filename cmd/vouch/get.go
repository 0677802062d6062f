package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/credential"
	"github.com/vouchd/vouchd/workloadapi"
	"github.com/vouchd/vouchd/workloadapi/credentialv1"
)

// leaser is what the commands that lease share.
type leaser struct {
	socket  string
	timeout time.Duration
	ttl     time.Duration
	params  []string // key=value
}

func (l *leaser) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&l.socket, "socket", "", "agent socket, as `unix:///path`")
	cmd.Flags().DurationVar(&l.timeout, "timeout", 30*time.Second, "give up after this long")
	cmd.Flags().DurationVar(&l.ttl, "ttl", 0, "how long the lease is wanted for; without it, what its definition says")
}

// client connects to the agent socket.
func (l *leaser) client() (*workloadapi.CredentialClient, error) {
	c, err := workloadapi.NewCredentialClient(cmp.Or(l.socket, os.Getenv("SPIFFE_ENDPOINT_SOCKET"), defaultEndpoint))
	if err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

// request is for one credential. Parameters may be given for one of several, as
// NAME:key=value.
func (l *leaser) request(name string, exposure credentialv1.Exposure) (*credentialv1.GrantCredentialRequest, error) {
	if l.ttl < 0 || l.ttl%time.Second != 0 {
		return nil, usageError{fmt.Errorf("--ttl %v: want whole seconds", l.ttl)}
	}
	req := &credentialv1.GrantCredentialRequest{Name: name, TtlSeconds: int64(l.ttl / time.Second), Exposure: exposure, Parameters: map[string]string{}}
	for _, p := range l.params {
		key, value, ok := strings.Cut(p, "=")
		if !ok || key == "" {
			return nil, usageError{fmt.Errorf("--param %q: want key=value", p)}
		}
		if of, rest, ok := strings.Cut(key, ":"); ok {
			if of != name {
				continue
			}
			key = rest
		}
		req.Parameters[key] = value
	}
	return req, nil
}

// The forms in which get prints.
const (
	formatText = "text"
	formatJSON = "json"
	formatEnv  = "env"
)

func newGet(o *options) *cobra.Command {
	var l leaser
	var field string
	var show bool
	cmd := &cobra.Command{
		Use:   "get NAME",
		Short: "Lease a credential and print it",
		Long: `Get leases a credential to this process (vouch, as started by you) and prints its
fields: one a line, as JSON, or as NAME=value lines that a shell can read. With
--field the value of that one alone. Secrets are printed only where standard output
is not a terminal, or with --show.

A lease may end with the process that asked for it, which is vouch itself. Such a
credential would be revoked before it could be used, so get refuses it: run the
command that needs it under vouch exec.`,
		Example: `  vouch get openai-research --field access_token | my-agent --token-file /dev/stdin
  vouch get warehouse-readonly --param schema=sales --ttl 10m --output json
  vouch get warehouse-readonly --output env --show`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), l.timeout)
			defer cancel()
			if field != "" && o.output != formatText {
				return usageError{errors.New("--field prints one value as it is; leave out --output")}
			}
			lease, fields, err := l.get(ctx, args[0])
			if err != nil {
				return err
			}
			defer wipe(fields)
			w := cmd.OutOrStdout()
			if isTerminal(w) && !show {
				return describe(w, lease, fields)
			}
			return write(w, o.output, field, lease, fields)
		},
	}
	l.flags(cmd)
	cmd.Flags().StringArrayVar(&l.params, "param", nil, "choose a parameter, as `key=value`; may be repeated")
	cmd.Flags().StringVar(&field, "field", "", "print this `field` alone, as it is")
	cmd.Flags().BoolVar(&show, "show", false, "print secrets to a terminal")
	cmd.PersistentPreRunE = func(*cobra.Command, []string) error { return o.checkOutput(formatText, formatJSON, formatEnv) }
	return cmd
}

// get leases a credential that outlives this process.
func (l *leaser) get(ctx context.Context, name string) (*credentialv1.Lease, []credential.Field, error) {
	req, err := l.request(name, credentialv1.Exposure_EXPOSURE_UNSPECIFIED)
	if err != nil {
		return nil, nil, err
	}
	client, err := l.client()
	if err != nil {
		return nil, nil, err
	}
	defer client.Close()
	granted, err := client.List(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range granted {
		if c.Name == name && c.Bind == credentialv1.Bind_BIND_PROCESS &&
			c.Revocation != credentialv1.Revocation_REVOCATION_EXPIRY_ONLY && c.Revocation != credentialv1.Revocation_REVOCATION_NONE {
			return nil, nil, fmt.Errorf("%s ends with the process that asks for it, which is vouch itself; use vouch exec --credential %s=ENV -- COMMAND, or give its definition bind: lease", name, name)
		}
	}
	return client.Grant(ctx, req)
}

func wipe(fields []credential.Field) {
	for _, f := range fields {
		f.Value.Wipe()
	}
}

// describe says what was leased without its secrets.
func describe(w io.Writer, lease *credentialv1.Lease, fields []credential.Field) error {
	fmt.Fprintf(w, "%s for %s until %s\n", lease.Credential, lease.SpiffeId, at(time.Unix(lease.ExpiresAt, 0)))
	for _, f := range fields {
		if f.Public {
			fmt.Fprintf(w, "%s\t%q\n", f.Name, f.Value.Reveal())
		} else {
			fmt.Fprintf(w, "%s\t(--show prints it)\n", f.Name)
		}
	}
	return nil
}

// A gotView is a credential in JSON. A value that is not UTF-8 is in base64,
// among the second fields.
type gotView struct {
	Credential string            `json:"credential"`
	SPIFFEID   string            `json:"spiffe_id"`
	LeaseID    string            `json:"lease_id"`
	Expires    time.Time         `json:"expires"`
	Fields     map[string]string `json:"fields"`
	Base64     map[string][]byte `json:"fields_base64,omitempty"`
}

// write prints a credential with its secrets.
func write(w io.Writer, format, field string, lease *credentialv1.Lease, fields []credential.Field) error {
	var b bytes.Buffer
	defer func() { clear(b.Bytes()[:b.Cap()]) }()
	switch {
	case field != "":
		value, err := fieldNamed(lease.Credential, fields, field)
		if err != nil {
			return err
		}
		b.Write(value)
	case format == formatJSON:
		view := gotView{lease.Credential, lease.SpiffeId, lease.Id, time.Unix(lease.ExpiresAt, 0).UTC(), map[string]string{}, map[string][]byte{}}
		for _, f := range fields {
			if v := f.Value.Reveal(); utf8.Valid(v) {
				view.Fields[f.Name] = string(v)
			} else {
				view.Base64[f.Name] = v
			}
		}
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		if err := enc.Encode(view); err != nil {
			return fmt.Errorf("printing %s: %w", lease.Credential, err)
		}
	case format == formatEnv:
		for _, f := range fields {
			if bytes.IndexByte(f.Value.Reveal(), 0) >= 0 {
				return fmt.Errorf("field %s of %s holds a zero byte, which no variable can; use --field or --output json", f.Name, lease.Credential)
			}
			fmt.Fprintf(&b, "%s=%s\n", envName(f.Name), shellQuote(string(f.Value.Reveal())))
		}
	default:
		for _, f := range fields {
			if bytes.IndexByte(f.Value.Reveal(), '\n') >= 0 {
				return fmt.Errorf("field %s of %s has several lines; use --field or --output json", f.Name, lease.Credential)
			}
			fmt.Fprintf(&b, "%s\t%s\n", f.Name, f.Value.Reveal())
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

func fieldNamed(name string, fields []credential.Field, field string) ([]byte, error) {
	var names []string
	for _, f := range fields {
		if f.Name == field {
			return f.Value.Reveal(), nil
		}
		names = append(names, f.Name)
	}
	return nil, usageError{fmt.Errorf("%s has no field %q; it has %s", name, field, strings.Join(names, ", "))}
}

// envName is a field's name as that of a variable.
func envName(field string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, field)
}

// shellQuote is a value as one word of a shell.
func shellQuote(value string) string { return "'" + strings.ReplaceAll(value, "'", `'\''`) + "'" }
