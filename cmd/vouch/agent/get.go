package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/cmd/vouch/deliver"
	"github.com/vouchd/vouchd/secret"
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
	cmd.Flags().DurationVar(&l.ttl, "ttl", 0, "how long to lease for (default: as the credential's definition says)")
}

// client connects to the agent socket.
func (l *leaser) client() (*cli.Credentials, error) { return cli.NewCredentials(l.socket) }

// request is for one credential. Parameters may be given for one of several, as
// NAME:key=value.
func (l *leaser) request(name string, exposure credentialv1.Exposure) (*credentialv1.GrantCredentialRequest, error) {
	if l.ttl < 0 || l.ttl%time.Second != 0 {
		return nil, cli.Usagef("--ttl %v: want whole seconds", l.ttl)
	}
	req := &credentialv1.GrantCredentialRequest{Name: name, TtlSeconds: int64(l.ttl / time.Second), Exposure: exposure, Parameters: map[string]string{}}
	for _, p := range l.params {
		key, value, ok := strings.Cut(p, "=")
		if !ok || key == "" {
			return nil, cli.Usagef("--param %q: want key=value", p)
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

// The formats in which get prints.
const (
	formatText = "text"
	formatJSON = "json"
	formatEnv  = "env"
	formatFile = "file"
)

func newGet(o *cli.Options) *cobra.Command {
	var l leaser
	var p deliver.Place
	var field, format string
	var show, list bool
	var warnPath, warnFormat func()
	cmd := &cobra.Command{
		Use:   "get {NAME | --list}",
		Short: "Lease a credential and print it, or keep it in a file",
		Long: `Get leases a credential to this process (vouch, as started by you) and prints its
fields, one per line, as JSON, or as NAME=value lines for a shell. With --field it
prints the value of that field alone. Secrets are printed only if standard output is
not a terminal, or with --show.

With --write they go into a file, as JSON unless --output says otherwise. The file is
replaced atomically, with its mode and owner, so readers see either the old value or
the new one. With --follow, vouch keeps running: it replaces the value before it
expires, notifies the program that reads it, and on exit removes the file and revokes
its leases. As a service of Type=notify, it is ready once the file exists.

A lease can be bound to the process that asked for it, which is vouch itself. Such a
credential would be revoked before it could be used, so get refuses it without
--follow: run the command that needs it under vouch exec.

With --list nothing is leased: get says what this process is granted, and how it comes.`,
		Example: `  vouch get openai-research --field access_token | my-agent --token-file /dev/stdin
  vouch get warehouse-readonly --param schema=sales --ttl 10m --output json
  vouch get warehouse-readonly --output env --show
  vouch get --list
  vouch get warehouse-readonly --write /run/app/db.json --follow --signal HUP --pid 4211`,
		Args: func(cmd *cobra.Command, args []string) error {
			if list {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if list {
				return l.list(cmd, o)
			}
			warnPath()
			warnFormat()
			form, err := fileForm(cmd, o.Output, format, &p)
			if err != nil {
				return err
			}
			if p.Path != "" {
				return l.keepFile(cmd.Context(), &p, args[0], form, field)
			}
			if field != "" && o.Output != formatText {
				return cli.Usagef("--field prints one value as it is; omit --output")
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), l.timeout)
			defer cancel()
			lease, fields, err := l.get(ctx, args[0])
			if err != nil {
				return err
			}
			defer wipe(fields)
			w := cmd.OutOrStdout()
			if cli.IsTerminal(w) && !show {
				return describe(w, lease, fields)
			}
			return write(w, o.Output, field, lease, fields)
		},
	}
	l.flags(cmd)
	cmd.Flags().BoolVar(&list, "list", false, "say what there is to get, and lease nothing")
	placeFlags(&p, cmd)
	cmd.Flags().StringVar(&p.Path, "path", "", "write to this `file`")
	warnPath = cli.DeprecatedFlag(cmd, "path", "--write")
	cmd.Flags().StringArrayVar(&l.params, "param", nil, "choose a parameter, as `key=value`; may be repeated")
	cmd.Flags().StringVar(&field, "field", "", "print only this `field`, unmodified")
	cmd.Flags().StringVar(&format, "format", formatJSON, "`form` of the file: text, json or env")
	warnFormat = cli.DeprecatedFlag(cmd, "format", "--output")
	cmd.Flags().BoolVar(&show, "show", false, "print secrets to a terminal")
	outputs := []string{formatText, formatJSON, formatEnv, formatFile}
	cmd.PersistentPreRunE = func(*cobra.Command, []string) error { return o.CheckOutput(outputs...) }
	return cmd
}

// fileForm returns the format of a file, and refuses file flags if no file is
// written. --output file, --path and --format date from before --output was a
// format everywhere.
func fileForm(cmd *cobra.Command, output, format string, p *deliver.Place) (string, error) {
	given := cmd.Flags().Changed
	if output == formatFile {
		fmt.Fprintln(cmd.ErrOrStderr(), "vouch: --output file is deprecated; use --write FILE")
		if p.Path == "" {
			return "", cli.Usagef("--write is required: the file to write")
		}
	}
	if p.Path == "" {
		for _, name := range append([]string{"format"}, fileFlags...) {
			if given(name) {
				return "", cli.Usagef("--%s requires --write", name)
			}
		}
		return "", nil
	}
	if given("output") && output != formatFile {
		if given("format") {
			return "", cli.Usagef("--output and --format are the same; omit --format")
		}
		format = output
	}
	if !slices.Contains([]string{formatText, formatJSON, formatEnv}, format) {
		return "", cli.Usagef("--format %q: want text, json or env", format)
	}
	if given("field") && (given("format") || given("output") && output != formatFile) {
		return "", cli.Usagef("--field writes one value as it is; omit --output")
	}
	return format, nil
}

// get leases a credential that outlives this process, to be printed.
func (l *leaser) get(ctx context.Context, name string) (*credentialv1.Lease, []secret.Field, error) {
	req, err := l.request(name, printedTo(os.Stdout))
	if err != nil {
		return nil, nil, err
	}
	client, err := l.client()
	if err != nil {
		return nil, nil, err
	}
	defer client.Close()
	return l.lasting(ctx, client, req)
}

// printedTo says where printed values end up. Nothing is known about a pipe's
// reader.
func printedTo(f *os.File) credentialv1.Exposure {
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		return credentialv1.Exposure_EXPOSURE_FILE
	}
	return credentialv1.Exposure_EXPOSURE_UNSPECIFIED
}

// lasting leases a credential that outlives this process.
func (l *leaser) lasting(ctx context.Context, client *cli.Credentials, req *credentialv1.GrantCredentialRequest) (*credentialv1.Lease, []secret.Field, error) {
	granted, err := client.List(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range granted {
		if c.Name == req.Name && c.Proxy != nil && !c.Proxy.Values {
			return nil, nil, fmt.Errorf("%[1]s is not handed out: vouchd makes the calls, for the process that leases it and those that this starts; use vouch exec --proxy %[1]s -- COMMAND", req.Name)
		}
		if c.Name == req.Name && c.Bind == credentialv1.Bind_BIND_PROCESS &&
			c.Revocation != credentialv1.Revocation_REVOCATION_EXPIRY_ONLY && c.Revocation != credentialv1.Revocation_REVOCATION_NONE {
			return nil, nil, fmt.Errorf("%[1]s ends with the process that leases it, which would be vouch; use vouch exec --credential %[1]s=ENV -- COMMAND, or --write with --follow, or give its definition bind: lease or bind: unit", req.Name)
		}
	}
	return client.Grant(ctx, req)
}

func wipe(fields []secret.Field) {
	for _, f := range fields {
		f.Value.Wipe()
	}
}

// describe says what was leased without its secrets.
func describe(w io.Writer, lease *credentialv1.Lease, fields []secret.Field) error {
	fmt.Fprintf(w, "%s for %s until %s\n", lease.Credential, lease.SpiffeId, cli.Time(time.Unix(lease.ExpiresAt, 0)))
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
func write(w io.Writer, format, field string, lease *credentialv1.Lease, fields []secret.Field) error {
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
				return fmt.Errorf("field %s of %s contains a zero byte, which a variable cannot; use --field or --output json", f.Name, lease.Credential)
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

func fieldNamed(name string, fields []secret.Field, field string) ([]byte, error) {
	var names []string
	for _, f := range fields {
		if f.Name == field {
			return f.Value.Reveal(), nil
		}
		names = append(names, f.Name)
	}
	return nil, cli.Usagef("%s has no field %q; it has %s", name, field, strings.Join(names, ", "))
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
