package migrate

import (
	"bytes"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vouchd/vouchd/cmd/vouch/cli"
	"github.com/vouchd/vouchd/credential/dotenv"
	"github.com/vouchd/vouchd/credential/sealed"
	"github.com/vouchd/vouchd/inventory"
	"github.com/vouchd/vouchd/secret"
)

// An envFile is what to do with one .env file.
type envFile struct {
	options
	sealNamed []string // variables, whatever they look like
	databases []string // VARIABLE=CREDENTIAL

	urls map[string]string // of databases, by the variables that become them
}

// A value is a variable's, with the credential that it becomes.
type value struct {
	credential string
	secret     secret.Bytes
	line       int
}

func newEnv(o *cli.Options) *cobra.Command {
	m := envFile{options: options{Options: o}}
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
becomes that of a socket of vouchd's, and no password is sealed. The file changes last,
atomically, after every value is sealed; if interrupted, run the command again. Treat
anything that was in a file as leaked: rotate it at its source.`,
		Example: `  vouch migrate env .env --credential-prefix app --dry-run
  vouch migrate env .env --credential-prefix app --keep OPENAI_MODEL --disclosable
  vouch migrate env .env --credential-prefix app --database DATABASE_URL=warehouse
  vouch exec --env-file .env -- ./app`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if m.prefix == "" {
				return cli.Usagef("--credential-prefix is required")
			}
			if err := m.connect(); err != nil {
				return err
			}
			return m.run(cmd, args[0], target{"migrate env", inventory.Env, m.plan})
		},
	}
	m.flags(cmd)
	m.variableFlags(cmd)
	cmd.Flags().StringArrayVar(&m.sealNamed, "seal", nil, "seal this `variable` even if it looks harmless; may be repeated")
	cmd.Flags().StringArrayVar(&m.databases, "database", nil, "have a variable name the socket of a database, as `VARIABLE=CREDENTIAL`; may be repeated")
	return cmd
}

// plan decides what to do with each variable.
func (m *envFile) plan(p *plan) error {
	file, err := dotenv.Parse(p.file.Data)
	if err != nil {
		return err
	}
	values := make(map[string]value) // by variable
	named := make(map[string]string) // variables by credential
	for _, v := range file.Variables {
		name := m.credentialOf(v.Name)
		why, because := m.stays(v)
		switch first, again := values[v.Name]; {
		case v.Unclear != "": // --keep does not help: vouch exec --env-file reads it too
			p.fail(v.Line, "value of %s: %s", v.Name, v.Unclear)
			continue
		case m.urls[v.Name] != "":
			m.namesSocket(p, v)
			continue
		case p.keeps(v.Name, v.Line):
			continue
		case bytes.HasPrefix(v.Value.Reveal(), []byte(handlePrefix)):
			p.handle(v.Name, v.Line, handleOf(v.Value.Reveal()))
			continue
		case why != "":
			p.Kept = append(p.Kept, item{v.Name, v.Line, "", why})
			continue
		case again && !first.secret.Equal(v.Value):
			p.fail(v.Line, "%s has a different value on line %d; remove one", v.Name, first.line)
			continue
		case again:
			p.Sealed = append(p.Sealed, item{v.Name, v.Line, name, because})
			continue
		case named[name] != "" && named[name] != v.Name:
			p.fail(v.Line, "%s and %s would both be %s; rename one, or leave it with --keep", v.Name, named[name], name)
			continue
		}
		if err := sealed.CheckName(name); err != nil {
			p.fail(v.Line, "%w", err)
			continue
		}
		block, connects := databaseBlock(v.Name, v.Value)
		if m.disclosable {
			block, connects = "", false
		}
		if !connects {
			but, ok := p.deliverable(v.Name, v.Line)
			if !ok {
				continue
			}
			because += but
		}
		values[v.Name], named[name] = value{name, v.Value, v.Line}, v.Name
		p.keepSealing(definition{item: v.Name, variable: v.Name, block: block, better: betterThan(v.Name, "", v.Value)}, name, v.Line, v.Value, because)
	}
	for _, c := range file.Comments {
		if why, _ := harmless(c.Name, c.Value); c.Value.Len() > 0 && why == "" {
			p.Comments = append(p.Comments, item{c.Name, c.Line, "", "a comment that may contain a secret; remove it"})
		}
	}
	// A value is either sealed or kept, wherever it stands.
	for _, k := range p.Kept {
		if _, both := values[k.Item]; both {
			p.fail(k.Line, "%s is given twice, and must stay as it is here (%s); remove one", k.Item, k.Why)
		}
	}
	m.replace(p, file, values)
	p.Then = []string{"Then start the program with: vouch exec --env-file " + inventory.ShellQuote(p.file.Path) + " -- COMMAND"}
	return nil
}

// namesSocket plans that a variable has the URL of a database's socket.
func (m *envFile) namesSocket(p *plan, v dotenv.Variable) {
	credential := m.credentialNamed(v.Name)
	if string(v.Value.Reveal()) == m.urls[v.Name] {
		p.Kept = append(p.Kept, item{v.Name, v.Line, "", "the URL of a database's socket"})
	} else {
		p.Databases = append(p.Databases, item{v.Name, v.Line, credential, m.urls[v.Name]})
	}
	p.Credentials = append(p.Credentials, credential)
}

// replace plans what stands in the place of values.
func (m *envFile) replace(p *plan, file *dotenv.File, values map[string]value) {
	for _, r := range file.Replace(func(name string) (string, bool) {
		if u := m.urls[name]; u != "" {
			return u, true
		}
		v, ok := values[name]
		return handlePrefix + v.credential, ok
	}) {
		if string(p.file.Data[r.Start:r.End]) != r.Text {
			p.hide(r.Start, r.End)
			p.edit(r.Start, r.End, r.Text)
		}
	}
}

// handleOf is the credential that a handle stands for.
func handleOf(value []byte) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(string(value)), handlePrefix), ":")
	return name
}

// credentialNamed is the credential that --database names for a variable.
func (m *envFile) credentialNamed(variable string) string {
	for _, pair := range m.databases {
		if name, ok := strings.CutPrefix(pair, variable+"="); ok {
			return name
		}
	}
	return ""
}

// credentialOf is the name of a variable's credential, and of its secret.
func (m *envFile) credentialOf(variable string) string {
	return m.prefix + "-" + strings.ReplaceAll(strings.ToLower(variable), "_", "-")
}

// stays says why a value needs no sealing, or else why it is sealed.
func (m *envFile) stays(v dotenv.Variable) (why, because string) {
	switch {
	case v.Value.Len() == 0:
		return "empty", ""
	case slices.Contains(m.sealNamed, v.Name):
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
