// Package migrate moves static secrets out of files: it has the daemon seal them, writes
// definitions for review, and leaves handles in their places.
package migrate

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/credential/dotenv"
	"github.com/vouchd/vouchd/credential/policy"
	"github.com/vouchd/vouchd/credential/sealed"
	"github.com/vouchd/vouchd/secret"
	"github.com/vouchd/vouchd/state"
	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

// Commands returns the commands.
func Commands(o *cli.Options) []*cobra.Command {
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Move static secrets out of files",
	}
	cmd.AddCommand(newMigrateEnv(o))
	return []*cobra.Command{cmd}
}

// handlePrefix begins a value that stands for a credential: its name follows,
// and after a colon the field, if it is not the only one.
const handlePrefix = "vouch:"

// A migration is what to do with one .env file.
type migration struct {
	path        string
	prefix      string   // of credentials and secrets
	keep, seal  []string // variables, whatever they look like
	disclosable bool
	proxyLater  bool
	databases   []string // VARIABLE=CREDENTIAL
	definitions string   // file
	dryRun      bool

	urls map[string]string // of databases, by the variables that become them
}

// A migrationView says what was done with each variable.
type migrationView struct {
	File        string           `json:"file"`
	DryRun      bool             `json:"dry_run,omitempty"`
	Sealed      []migratedView   `json:"sealed"`              // handles now
	Kept        []migratedView   `json:"kept"`                // as they were
	Databases   []migratedView   `json:"databases,omitempty"` // URLs of their sockets now
	Comments    []migratedView   `json:"comments_that_look_secret,omitempty"`
	Definitions string           `json:"definitions,omitempty"` // file with them, to review
	Credentials []string         `json:"credentials"`           // for the entry
	values      map[string]value // by variable
}

type migratedView struct {
	Variable   string `json:"variable"`
	Line       int    `json:"line"`
	Credential string `json:"credential,omitempty"`
	Why        string `json:"why,omitempty"`
}

// A value is a variable's, with the credential that it becomes.
type value struct {
	credential string
	secret     secret.Bytes
	line       int
	block      string // of the definition, if it is the URL of a database
}

func newMigrateEnv(o *cli.Options) *cobra.Command {
	m := migration{}
	cmd := &cobra.Command{
		Use:   "env FILE --credential-prefix PREFIX",
		Short: "Seal the secrets of a .env file and leave handles in it",
		Long: `Env seals each secret of a .env file to this machine under PREFIX-VARIABLE, writes
definitions for review, prints what an entry needs to grant them, and replaces each
value with a handle (vouch:NAME). vouch exec --env-file runs a program with the values
behind the handles.

Values that are clearly not secret stay: switches, numbers, host names, paths. Override
that with --keep and --seal. A value that programs parse differently (with an unquoted
backslash or dollar sign) is refused with its line, as is a variable given twice with
different values, and one that its program could not be started with: vouchd makes the
calls for those that a preset knows, and logs in for URLs of PostgreSQL and Redis with
a password in them, and --disclosable hands the others out. With --database, a URL
becomes that of a socket of vouchd's, and no password is sealed. The file changes last, atomically, after every value is sealed; if
interrupted, run the command again. Treat anything that was in a file as leaked: rotate
it at its source.`,
		Example: `  vouch migrate env .env --credential-prefix app --dry-run
  vouch migrate env .env --credential-prefix app --keep OPENAI_MODEL --disclosable
  vouch migrate env .env --credential-prefix app --database DATABASE_URL=warehouse
  vouch exec --env-file .env -- ./app`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m.path = args[0]
			view, err := m.run(cmd.Context(), o)
			if err != nil {
				return err
			}
			return o.Print(cmd, view, view.writeText)
		},
	}
	cmd.Flags().StringVar(&m.prefix, "credential-prefix", "", "`prefix` for names of credentials and secrets")
	cmd.Flags().StringArrayVar(&m.keep, "keep", nil, "leave this `variable` as it is; may be repeated")
	cmd.Flags().StringArrayVar(&m.seal, "seal", nil, "seal this `variable` even if it looks harmless; may be repeated")
	cmd.Flags().StringArrayVar(&m.databases, "database", nil, "have a variable name the socket of a database, as `VARIABLE=CREDENTIAL`; may be repeated")
	cmd.Flags().BoolVar(&m.disclosable, "disclosable", false, "write definitions that disclose the values, not proxy-only ones")
	cmd.Flags().BoolVar(&m.proxyLater, "proxy-later", false, "write definitions that need a proxy block by hand before a program can start")
	cmd.MarkFlagsMutuallyExclusive("disclosable", "proxy-later")
	cmd.Flags().StringVar(&m.definitions, "definitions", "", "write definitions to this `file` (default PREFIX.yaml.disabled in the credentials directory)")
	cmd.Flags().BoolVar(&m.dryRun, "dry-run", false, "print what would be done, and change nothing")
	return cmd
}

func (m *migration) run(ctx context.Context, o *cli.Options) (*migrationView, error) {
	if m.prefix == "" {
		return nil, cli.Usagef("--credential-prefix is required")
	}
	if err := sealed.CheckName(m.prefix); err != nil {
		return nil, cli.Usage(err)
	}
	before, info, err := readEnvFile(m.path)
	if err != nil {
		return nil, err
	}
	defer clear(before)
	file, err := dotenv.Parse(before)
	if err != nil {
		return nil, cli.InFile(m.path, err)
	}
	if err := m.connect(o); err != nil {
		return nil, err
	}
	view, err := m.plan(file)
	if err != nil {
		return nil, cli.InFile(m.path, err)
	}
	if m.dryRun {
		return view, nil
	}
	if err := m.sealAll(ctx, o, view); err != nil {
		return nil, err
	}
	if err := m.define(o, view); err != nil {
		return nil, err
	}
	return view, m.replace(file, before, info, view)
}

// readEnvFile reads a file that is not a link and has no other hard links.
func readEnvFile(path string) ([]byte, os.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, nil, fmt.Errorf("%s is a symbolic link; name the file it points to", path)
	}
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is not a regular file", path)
	}
	if n := info.Sys().(*syscall.Stat_t).Nlink; n != 1 {
		return nil, nil, fmt.Errorf("%s has %d hard links, and the secrets would stay in the others; find and remove them first: find / -xdev -samefile %[1]s", path, n)
	}
	data, err := io.ReadAll(io.LimitReader(f, dotenv.MaxLen+1))
	return data, info, err
}

// plan decides what to do with each variable. Its error lists every obstacle.
func (m *migration) plan(file *dotenv.File) (*migrationView, error) {
	view := &migrationView{File: m.path, DryRun: m.dryRun, Sealed: []migratedView{}, Kept: []migratedView{}, Credentials: []string{}, values: make(map[string]value)}
	var problems []error
	named := make(map[string]string) // variables by credential
	for _, v := range file.Variables {
		name := m.credentialOf(v.Name)
		why, because := m.stays(v)
		switch first, again := view.values[v.Name]; {
		case v.Unclear != "": // --keep does not help: vouch exec --env-file reads it too
			problems = append(problems, fmt.Errorf("line %d: value of %s: %s", v.Line, v.Name, v.Unclear))
			continue
		case m.urls[v.Name] != "":
			if string(v.Value.Reveal()) == m.urls[v.Name] {
				view.Kept = append(view.Kept, migratedView{v.Name, v.Line, "", "the URL of a database's socket"})
			} else {
				view.Databases = append(view.Databases, migratedView{v.Name, v.Line, m.credentialNamed(v.Name), m.urls[v.Name]})
			}
			view.Credentials = append(view.Credentials, m.credentialNamed(v.Name))
			continue
		case slices.Contains(m.keep, v.Name):
			view.Kept = append(view.Kept, migratedView{v.Name, v.Line, "", "--keep"})
			continue
		case bytes.HasPrefix(v.Value.Reveal(), []byte(handlePrefix)):
			credential, _, _ := strings.Cut(strings.TrimPrefix(string(v.Value.Reveal()), handlePrefix), ":")
			view.Kept = append(view.Kept, migratedView{v.Name, v.Line, credential, "already a handle"})
			view.Credentials = append(view.Credentials, credential)
			continue
		case why != "":
			view.Kept = append(view.Kept, migratedView{v.Name, v.Line, "", why})
			continue
		case again && !first.secret.Equal(v.Value):
			problems = append(problems, fmt.Errorf("line %d: %s has a different value on line %d; remove one", v.Line, v.Name, first.line))
			continue
		case named[name] != "" && named[name] != v.Name:
			problems = append(problems, fmt.Errorf("line %d: %s and %s would both be %s; rename one, or leave it with --keep", v.Line, v.Name, named[name], name))
			continue
		}
		if err := sealed.CheckName(name); err != nil {
			problems = append(problems, fmt.Errorf("line %d: %w", v.Line, err))
			continue
		}
		block, connects := databaseBlock(v.Name, v.Value)
		if m.disclosable {
			block, connects = "", false
		}
		if _, known := policy.PresetOf(v.Name); !known && !connects && !m.disclosable && !m.proxyLater {
			undeliverable := fmt.Errorf("no preset makes calls with %s, so that its program could not start; give --disclosable to hand values to the programs that an entry grants them, --keep %[1]s, or --proxy-later to write its proxy block by hand", v.Name)
			if !m.dryRun {
				problems = append(problems, fmt.Errorf("line %d: %w", v.Line, undeliverable))
				continue
			}
			because += "; but " + undeliverable.Error()
		}
		view.Sealed = append(view.Sealed, migratedView{v.Name, v.Line, name, because})
		view.Credentials = append(view.Credentials, name)
		view.values[v.Name], named[name] = value{name, v.Value, v.Line, block}, v.Name
	}
	for _, c := range file.Comments {
		if why, _ := harmless(c.Name, c.Value); c.Value.Len() > 0 && why == "" {
			view.Comments = append(view.Comments, migratedView{c.Name, c.Line, "", "a comment that may contain a secret; remove it"})
		}
	}
	// A value is either sealed or kept, wherever it stands.
	for _, k := range view.Kept {
		if _, both := view.values[k.Variable]; both {
			problems = append(problems, fmt.Errorf("line %d: %s is given twice, and must stay as it is here (%s); remove one", k.Line, k.Variable, k.Why))
		}
	}
	slices.Sort(view.Credentials)
	view.Credentials = slices.Compact(view.Credentials)
	return view, errors.Join(problems...)
}

// credentialNamed is the credential that --database names for a variable.
func (m *migration) credentialNamed(variable string) string {
	for _, pair := range m.databases {
		if name, ok := strings.CutPrefix(pair, variable+"="); ok {
			return name
		}
	}
	return ""
}

// credentialOf is the name of a variable's credential, and of its secret.
func (m *migration) credentialOf(variable string) string {
	return m.prefix + "-" + strings.ReplaceAll(strings.ToLower(variable), "_", "-")
}

// stays says why a value needs no sealing, or else why it is sealed.
func (m *migration) stays(v dotenv.Variable) (why, because string) {
	switch {
	case v.Value.Len() == 0:
		return "empty", ""
	case slices.Contains(m.seal, v.Name):
		return "", "--seal"
	}
	return harmless(v.Name, v.Value)
}

// Names and values that suggest a secret, and values that are plainly not one.
var (
	secretName  = regexp.MustCompile(`(?i)key|token|secret|pass($|[_-]|w|phrase|code)|(^|_)pw($|d|_)|pwd|pin$|cred|private|auth|cookie|salt|sign|hook|dsn|session|conn(ection)?_?str|licen[cs]e|mnemonic|otp|hmac|bearer|jwt`)
	pathName    = regexp.MustCompile(`(?i)_(file|path|dir|folder|socket)$|^(google_application_credentials|kubeconfig|ssh_auth_sock|ssl_cert_file)$`)
	path        = regexp.MustCompile(`^/[A-Za-z0-9._-]{1,64}(/[A-Za-z0-9._-]{1,64})+$`)
	switchValue = regexp.MustCompile(`(?i)^(true|false|yes|no|on|off|null|none)$`)
	// A URL that is a secret itself: whoever has a hook's address may use it.
	secretURL   = regexp.MustCompile(`(?i)^[a-z][a-z0-9+.-]*://([^/]*@|[^?]*hook|[^/]*/(services|key|trigger|bot)/|.*[?&])`)
	plainValues = []struct {
		is     string
		values *regexp.Regexp
	}{
		{"a number", regexp.MustCompile(`^-?[0-9]{1,6}([.][0-9]{1,6})?$`)},
		{"a size or a time", regexp.MustCompile(`^[0-9]{1,6}(ms|s|m|h|d|k|kb|mb|gb)$`)},
		{"a word", regexp.MustCompile(`^[a-z]{1,12}$`)}, // an app password is one of 16 letters
		{"a version or an address", regexp.MustCompile(`^v?[0-9]{1,4}([.][0-9]{1,4}){1,3}(:[0-9]{1,5})?$`)},
		{"a host or a URL", regexp.MustCompile(`^(https?://)?(localhost|([a-z0-9-]{1,32}[.])+[a-z]{2,12})(:[0-9]{1,5})?(/([a-z_-]{1,16}|v[0-9]{1,2}([.][0-9]{1,2})?))*/?$`)},
		{"a path", regexp.MustCompile(`^/[A-Za-z0-9._/-]{0,128}$`)},
		{"a region", regexp.MustCompile(`^[a-z]{2}-[a-z]{4,9}-[0-9]$`)},
	}
)

// harmless says why a value is plainly not a secret, or else why it may be one.
func harmless(name string, v secret.Bytes) (why, because string) {
	switch text := v.Reveal(); {
	case switchValue.Match(text):
		return "a switch", ""
	case pathName.MatchString(name) && path.Match(text):
		return "the path of a file, which may hold a secret itself; --seal " + name + " seals the path", ""
	case secretURL.Match(text):
		return "", "a URL that may be a secret"
	case secretName.MatchString(name):
		return "", "named like a secret"
	}
	for _, plain := range plainValues {
		if plain.values.Match(v.Reveal()) {
			return "looks harmless (" + plain.is + "); --seal " + name + " seals it", ""
		}
	}
	return "", "its value is nothing plain"
}

// sealAll has every value sealed. Values already sealed, such as by an interrupted
// run, are accepted.
func (m *migration) sealAll(ctx context.Context, o *cli.Options, found *migrationView) error {
	client, err := o.Admin()
	if err != nil {
		return err
	}
	done := make(map[string]bool)
	for _, s := range found.Sealed {
		if done[s.Variable] {
			continue
		}
		done[s.Variable] = true
		v := found.values[s.Variable]
		if _, err := client.Secrets.Seal(ctx, v.credential, v.secret, view.SecretOptions{Same: true}); err != nil {
			return fmt.Errorf("%w; %s is unchanged", err, m.path)
		}
	}
	return nil
}

// define adds definitions for the sealed credentials to the file to review, and
// keeps those already there.
func (m *migration) define(o *cli.Options, view *migrationView) error {
	c, err := o.Load()
	if err != nil {
		return err
	}
	inForce := filepath.Join(c.CredentialsDir, m.prefix+".yaml")
	path := cmp.Or(m.definitions, inForce+".disabled")
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	reviewed, err := os.ReadFile(inForce)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(text) == 0 {
		text = []byte("# From " + filepath.Base(m.path) + ", by vouch migrate env. Review it, and rename it to end in .yaml.\ncredentials:\n")
	}
	length := len(text)
	for _, s := range view.Sealed {
		defined := regexp.MustCompile(`(?m)^[ \t-]*name:[ \t]*` + regexp.QuoteMeta(s.Credential) + `[ \t]*$`)
		if defined.Match(text) || defined.Match(reviewed) {
			continue
		}
		text = m.definition(text, s, view.values[s.Variable].block)
	}
	if len(text) == length {
		return nil
	}
	view.Definitions = path
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return state.ReplaceFileDurably(path, text, state.Mode(0o644))
}

// definition appends the definition of a sealed credential. Calls are made with one whose
// clients are known; others are undeliverable until somebody says how.
func (m *migration) definition(text []byte, s migratedView, block string) []byte {
	text = fmt.Appendf(text, "  - name: %s\n    description: %s of %s\n    broker: static\n", s.Credential, s.Variable, filepath.Base(m.path))
	preset, known := policy.PresetOf(s.Variable)
	switch {
	case m.disclosable:
		text = append(text, "    bind: lease # or unit, for LoadCredential=; or process, for a program that asks by itself\n    static:\n      disclosable: true # to programs that an entry grants it\n"...)
		if known {
			text = fmt.Appendf(text, "    # Better: remove disclosable, and have vouchd make the calls (docs/proxy.md).\n    # proxy: {preset: %s}\n", preset)
		}
	case block != "":
		text = append(append(text, "    ttl: 1h # no connection lives longer\n    limits: {rate: 600/1m, concurrent: 100} # of connections\n    static:\n      disclosable: false\n"...), block...)
	case known:
		text = fmt.Appendf(text, "    ttl: 1h\n    static:\n      disclosable: false\n    proxy: # vouchd makes the calls: the program never has the value (docs/proxy.md)\n      preset: %s\n", preset)
	default:
		text = append(text, "    bind: lease # or unit, for LoadCredential=; or process, for a program that asks by itself\n    static:\n      disclosable: false # needs a proxy block (docs/proxy.md), or true, which hands the value to programs\n"...)
	}
	return text
}

// replace puts the handles into the file, if it has not changed since it was read.
func (m *migration) replace(file *dotenv.File, before []byte, info os.FileInfo, view *migrationView) error {
	if len(view.Sealed)+len(view.Databases) == 0 {
		return nil
	}
	now, again, err := readEnvFile(m.path)
	if err != nil {
		return err
	}
	defer clear(now)
	if !os.SameFile(info, again) || !bytes.Equal(before, now) {
		return fmt.Errorf("%s changed in the meantime and was left alone; run this again", m.path)
	}
	after := file.Replace(func(name string) (string, bool) {
		if u := m.urls[name]; u != "" {
			return u, true
		}
		v, ok := view.values[name]
		return handlePrefix + v.credential, ok
	})
	st := again.Sys().(*syscall.Stat_t)
	return state.ReplaceFileDurably(m.path, after, state.Ownership{Mode: again.Mode().Perm(), UID: int(st.Uid), GID: int(st.Gid)})
}

func (v *migrationView) writeText(w io.Writer) {
	verb := "sealed"
	if v.DryRun {
		verb = "would be sealed"
	}
	for _, s := range v.Sealed {
		fmt.Fprintf(w, "%s:%d: %s %s as %s: %s\n", v.File, s.Line, s.Variable, verb, s.Credential, s.Why)
	}
	for _, d := range v.Databases {
		fmt.Fprintf(w, "%s:%d: %s names the socket of %s: %s\n", v.File, d.Line, d.Variable, d.Credential, d.Why)
	}
	for _, k := range v.Kept {
		fmt.Fprintf(w, "%s:%d: %s kept as is: %s\n", v.File, k.Line, k.Variable, k.Why)
	}
	for _, c := range v.Comments {
		fmt.Fprintf(w, "%s:%d: %s: %s\n", v.File, c.Line, c.Variable, c.Why)
	}
	if v.Definitions != "" {
		fmt.Fprintf(w, "\nReview %s and rename it to end in .yaml.\n", v.Definitions)
	}
	if len(v.Credentials) > 0 {
		fmt.Fprintf(w, "Add to the entry of the program that needs them:\n\n    credentials: [%s]\n\nThen start the program with: vouch exec --env-file %s -- COMMAND\n", strings.Join(v.Credentials, ", "), v.File)
	}
	if len(v.Sealed) > 0 && !v.DryRun {
		fmt.Fprintf(w, "The values were in a file and may be in its backups: rotate them at their sources.\n")
	}
}
